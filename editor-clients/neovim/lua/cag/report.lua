--- What a bug report needs of an answer: versions, counts and times; never the document.

local client = require('cag.client')
local protocol = require('cag.protocol')
local status = require('cag.status')
local text = require('cag.text')

local M = {}

--- A sentence without the folders that stand in it.
---@param message string
---@return string
local function without_folders(message)
  return (message:gsub('%f[^%s"\'(]~?[%w:]*[/\\][^%s:,;"\')]*[/\\]([^%s:,;"\')/\\]+)', '…/%1'))
end

--- Neovim's version.
---@return string
function M.neovim()
  return tostring(vim.version()) ---@diagnostic disable-line: call-non-callable
end

--- What a bug report needs of an answer; never the document, never a folder.
---@param answer cag.Answer
---@return string
function M.of(answer)
  local lines = { '**Question**: ' .. answer.question }
  local function add(line, ...)
    lines[#lines + 1] = select('#', ...) > 0 and line:format(...) or line
  end
  if answer.selection then
    add('(with %d characters selected)', text.units(answer.selection.text, #answer.selection.text))
  end
  add('')
  add('**Answer** (%s): %s', answer.result and answer.result.finishReason or answer.state, answer.text)
  add('')
  if answer.problem then
    local reason = answer.problem.reason and (' (%s)'):format(answer.problem.reason) or ''
    add('- failed: %s%s', without_folders(answer.problem.message), reason)
  end
  local result = answer.result
  if result then
    local now = status.of(answer.client_id)
    local model = now and now.model and (', %s, %s'):format(now.model.device, now.model.dtype) or ''
    local name = result.model.name:match('^[~/\\]') and vim.fs.basename(result.model.name) or result.model.name
    add('- model: %s, quantization %s%s', name, result.model.quantization, model)
    add(
      '- document: version %s, %d tokens, %s%s',
      result.document.version,
      result.document.tokens,
      result.snapshot,
      answer.changed and ', changed since' or ''
    )
    add('- tokens: %s; asked for: %s', vim.json.encode(result.tokens), answer.max_new_tokens or 'the default')
    add('- milliseconds: %s', vim.json.encode(result.milliseconds))
    local places = {}
    for _, citation in ipairs(result.citations) do
      local from, to = unpack(citation.answerRange)
      places[#places + 1] = ('%d–%d at line %d'):format(from, to, citation.location.range.start.line + 1)
    end
    add('- citations: %s', #places > 0 and table.concat(places, '; ') or 'none')
  end
  local record = client.record(answer.client_id) or {}
  local server, said = record.server or {}, record.experimental or {}
  add(
    '- cag-daemon %s, protocol %s; plugin %s, protocol %d',
    server.version or '(not running)',
    tostring(said.protocolVersion or '(unknown)'),
    protocol.PLUGIN_VERSION,
    protocol.PROTOCOL_VERSION
  )
  local system = vim.uv.os_uname()
  add('- Neovim %s, %s %s', M.neovim(), system.sysname, system.machine)
  return table.concat(lines, '\n')
end

return M
