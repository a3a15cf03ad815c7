--- The daemon's state where it is seen: the statusline, `:Cag status`, a message when it fails.

local client = require('cag.client')
local notice = require('cag.notice')
local text = require('cag.text')

local M = {}

---@type table<integer, cag.Status>
local latest = {}

--- Tell everybody who shows the state.
---@param client_id integer
local function announce(client_id)
  vim.cmd.redrawstatus({ bang = true })
  vim.api.nvim_exec_autocmds('User', {
    pattern = 'CagStatus',
    modeline = false,
    data = { client_id = client_id, status = latest[client_id] },
  })
end

--- Handler of `cag/statusChanged`.
---@param client_id integer
---@param status cag.Status
function M.changed(client_id, status)
  latest[client_id] = status
  if status.state == 'failed' then
    notice.failed(status.message, notice.level(status.reason))
  end
  require('cag.answers').status_changed(client_id)
  announce(client_id)
end

--- The daemon has ended.
---@param client_id integer
function M.gone(client_id)
  latest[client_id] = nil
  announce(client_id)
end

--- What the daemon said last.
---@param client_id integer
---@return cag.Status?
function M.of(client_id)
  return latest[client_id]
end

--- What the daemon said last of a document: of the one with that URI, or of the one that a file belongs to.
---@param client_id integer
---@param uri? string
---@return cag.DocumentStatus?
function M.document(client_id, uri)
  local status = latest[client_id]
  local best
  for _, document in ipairs(status and status.documents or {}) do
    if document.uri == uri then
      return document
    end
    local folder = document.uri:match('^(.*/)') or ''
    if not best or (uri and vim.startswith(uri, folder) and #folder > #best.folder) then
      best = { folder = folder, document = document }
    end
  end
  return best and best.document
end

--- The state in a few words, for a statusline: `cag ready · 13.5k of 31k tokens`; empty where no daemon is running.
---@param bufnr? integer Default: the current buffer.
---@return string
function M.text(bufnr)
  local running = client.running(bufnr or vim.api.nvim_get_current_buf())
  if not running then
    return ''
  end
  local status = latest[running.id]
  return 'cag ' .. (status and status.short or 'starting')
end

--- All that the daemon said last of its state; nil where none is running.
---@param bufnr? integer Default: the current buffer.
---@return cag.Status?
function M.data(bufnr)
  local running = client.running(bufnr or vim.api.nvim_get_current_buf())
  return running and latest[running.id]
end

---@param model cag.ModelStatus
---@return string
local function about_model(model)
  ---@type string[]
  local parts = {
    ('%s, %s parameters, %s on %s'):format(
      model.name,
      model.parameters < 1e9 and ('%.1f million'):format(model.parameters / 1e6)
        or ('%.1f billion'):format(model.parameters / 1e9),
      model.quantization == 'none' and model.dtype or model.quantization,
      model.device
    ),
  }
  if require('cag.page').is_stand_in(model.name) then
    parts[2] = 'a stand-in for a real Mistral'
  end
  return table.concat(parts, '; ')
end

---@param document cag.DocumentStatus
---@return string
local function about_document(document)
  local parts = { vim.fn.fnamemodify(vim.uri_to_fname(document.uri), ':~:.'), document.state }
  if document.tokens then
    parts[#parts + 1] = document.maxTokens
        and ('%s of %s tokens'):format(text.count(document.tokens), text.count(document.maxTokens))
      or ('%s tokens'):format(text.count(document.tokens))
  end
  if document.version then
    parts[#parts + 1] = ('version %s, from %s'):format(
      document.version:sub(1, 7),
      document.source == 'buffer' and 'the buffer' or 'the disk'
    )
  end
  if document.cached and document.cached.version ~= document.version then
    parts[#parts + 1] = ('version %s is read'):format(document.cached.version:sub(1, 7))
  end
  parts[#parts + 1] = document.message
  return table.concat(parts, ' · ')
end

--- The state at length, as chunks of `nvim_echo()`.
---@param status cag.Status
---@return [string, string?][]
function M.chunks(status)
  local bad = status.state == 'failed' or status.state == 'noDocument'
  local chunks = {
    { 'cag ' .. status.short, bad and 'WarningMsg' or 'Title' },
    { '\n' .. status.message },
  }
  local function add(label, words)
    vim.list_extend(chunks, { { ('\n%-10s'):format(label), 'Comment' }, { words } })
  end
  if status.model then
    add('model', about_model(status.model))
  end
  for _, document in ipairs(status.documents) do
    add('document', about_document(document))
  end
  if status.queue > 0 then
    add('waiting', ('%d questions'):format(status.queue))
  end
  if status.unloadsInSeconds then
    add('unloads', ('in %s without a question'):format(text.duration(status.unloadsInSeconds * 1000)))
  end
  return chunks
end

return M
