--- Questions and their answers: the one that is running, and those of the session, in memory only.

local client = require('cag.client')
local config = require('cag.config')
local find = require('cag.find')
local notice = require('cag.notice')
local protocol = require('cag.protocol')
local status = require('cag.status')

local M = {}

--- From so long a wait on, an answer from the earlier version is offered.
local PATIENCE_MS = 5000

---@class cag.AskOptions
---@field selection? cag.Selection Given to the model after the document.
---@field max_new_tokens? integer
---@field previous? boolean Answer at once, from the last version that is read.
---@field root? string The project to ask in; default: the current buffer's.
---@field document? string URI of a file of that project.

---@class cag.Answer
---@field id string
---@field question string
---@field selection? cag.Selection
---@field max_new_tokens? integer What was asked for; nil: the daemon's setting.
---@field previous boolean
---@field client_id integer
---@field root string
---@field document? string
---@field state 'waiting'|'streaming'|'done'|'stopped'|'failed'
---@field text string
---@field seq integer Of the piece that comes next.
---@field early table<integer, string> Pieces that came before their turn.
---@field request_id? integer
---@field offered boolean Whether an answer from the earlier version is offered.
---@field result? cag.AskResult
---@field problem? cag.Problem
---@field changed? boolean Whether the document has changed since.
---@field since number

--- The answers of this session, the oldest first.
---@type cag.Answer[]
M.list = {}

local number = 0

---@return cag.Answer?
function M.last()
  return M.list[#M.list]
end

--- The answer that is running.
---@return cag.Answer?
function M.running()
  local last = M.last()
  return last and (last.state == 'waiting' or last.state == 'streaming') and last or nil
end

---@param answer cag.Answer
local function draw(answer)
  require('cag.window').draw(answer)
end

-- ── asking ──

--- The URI that says which project a buffer's file belongs to; nil where it is in none of the client's.
---@param bufnr integer
---@param asked vim.lsp.Client
---@return string?
local function document_of(bufnr, asked)
  local path = find.file(bufnr)
  for _, folder in ipairs(path and asked.workspace_folders or {}) do
    if
      find.inside(path --[[@as string]], vim.uri_to_fname(folder.uri))
    then
      return vim.uri_from_fname(path --[[@as string]])
    end
  end
end

--- See whether the document of a finished answer is another one by now.
---@param answer cag.Answer
---@param client_id integer Whose word is taken.
---@return boolean differs It is not as it was when this was asked last.
local function note_change(answer, client_id)
  local from = answer.result and answer.result.document
  local document = from and status.document(client_id, from.uri)
  if not from or not document or document.uri ~= from.uri or not document.version then
    return false
  end
  local before = answer.changed or false
  answer.changed = document.version ~= from.version
  return before ~= answer.changed
end

---@param answer cag.Answer
---@param problem cag.Problem
local function fail(answer, problem)
  answer.state = 'failed'
  answer.problem = problem
  notice.failure(problem.message, problem.level)
  draw(answer)
end

---@param answer cag.Answer
---@param result cag.AskResult
local function finish(answer, result)
  answer.state = 'done'
  answer.result = result
  answer.text = result.answer
  note_change(answer, answer.client_id)
  if config.get().quickfix and #result.citations > 0 then
    require('cag.citations').to_quickfix(answer)
  end
  draw(answer)
end

--- Send the question of an answer; whatever it had before is forgotten.
---@param answer cag.Answer
---@param asked vim.lsp.Client
local function send(answer, asked)
  number = number + 1
  answer.id = ('%d-%d'):format(vim.uv.os_getpid(), number)
  answer.state, answer.text, answer.seq, answer.early = 'waiting', '', 0, {}
  answer.request_id, answer.result, answer.problem, answer.offered = nil, nil, nil, false
  answer.client_id, answer.since = asked.id, vim.uv.hrtime()
  local id = answer.id
  local function is_meant()
    return answer.id == id and (answer.state == 'waiting' or answer.state == 'streaming')
  end
  client.when_ready(asked, function()
    if not is_meant() then
      return
    end
    ---@type cag.AskParams
    local params = {
      question = answer.question,
      id = id,
      document = answer.document,
      selection = answer.selection,
      maxNewTokens = answer.max_new_tokens,
      whileRefreshing = answer.previous and 'previous' or nil,
    }
    answer.request_id = client.request(asked, protocol.METHODS.ask, params, function(problem, result)
      if not is_meant() then
        return
      end
      if problem then
        fail(answer, problem)
      else
        finish(answer, result)
      end
    end)
    M.status_changed(asked.id)
    draw(answer)
  end)
  vim.defer_fn(function()
    if is_meant() then
      M.status_changed(asked.id)
    end
  end, PATIENCE_MS + 50)
end

--- Ask a question, and show its answer as it comes. One that is running is stopped.
---@param question string
---@param options? cag.AskOptions
---@return cag.Answer?
function M.ask(question, options)
  options = options or {}
  question = vim.trim(question)
  if question == '' then
    return
  end
  local bufnr = vim.api.nvim_get_current_buf()
  local shown = require('cag.window').shown(bufnr)
  local root = options.root or (shown and shown.root)
  local asked, why, level
  if root then
    asked, why = client.start(root)
  else
    asked, why, level = client.pick(bufnr)
  end
  if not asked then
    notice.failure(why --[[@as string]], level or vim.log.levels.ERROR)
    return
  end
  M.stop()
  local selection = options.selection
  if selection and vim.trim(selection.text) == '' then
    selection = nil
  end
  ---@type cag.Answer
  local answer = {
    id = '',
    question = question,
    selection = selection,
    max_new_tokens = options.max_new_tokens,
    previous = options.previous or false,
    client_id = asked.id,
    root = asked.config.root_dir --[[@as string]],
    document = options.document or (shown and shown.document) or document_of(bufnr, asked),
    state = 'waiting',
    text = '',
    seq = 0,
    early = {},
    offered = false,
    since = 0,
  }
  table.insert(M.list, answer)
  require('cag.window').open(answer)
  send(answer, asked)
  draw(answer)
  return answer
end

--- A question is being typed: the daemon may read it already.
---@param words string
---@param options cag.AskOptions
---@param bufnr integer
function M.typing(words, options, bufnr)
  local asked = vim.trim(words) ~= '' and client.running(bufnr)
  if asked then
    client.hint(asked, 'typing', protocol.METHODS.typing, {
      question = words,
      document = options.document or document_of(bufnr, asked),
      selection = options.selection,
    })
  end
end

--- Stop the answer that is running.
---@return boolean stopped
function M.stop()
  local answer = M.running()
  if not answer then
    return false
  end
  -- No callback will tell: Neovim keeps the reply to a cancelled request to itself.
  answer.state = 'stopped'
  if answer.request_id then
    client.cancel(answer.client_id, answer.request_id)
  end
  draw(answer)
  return true
end

--- Ask the same again.
---@param answer cag.Answer
---@param changes? cag.AskOptions
---@return cag.Answer?
function M.again(answer, changes)
  return M.ask(
    answer.question,
    vim.tbl_extend('force', {
      selection = answer.selection,
      max_new_tokens = answer.max_new_tokens,
      root = answer.root,
      document = answer.document,
    }, changes or {})
  )
end

--- How long the answer would be if it went on; nil where it ended by itself, or there is no room for more.
---@param answer cag.Answer
---@return integer?
function M.longer_limit(answer)
  local result = answer.result
  if not result or result.finishReason ~= 'length' then
    return nil
  end
  local limit, generated = answer.max_new_tokens, result.tokens.generated
  -- Fewer than asked for: the document leaves no room. What was not asked for is the daemon's own limit.
  if generated == 0 or (limit and generated < limit) then
    return nil
  end
  local longer = math.min(4 * (limit or generated), protocol.MOST_NEW_TOKENS)
  return longer > (limit or generated) and longer or nil
end

--- Have the running question answered at once, from the version that is read already.
---@return boolean done
function M.from_previous()
  local answer = M.running()
  local asked = answer and client.alive(answer.client_id)
  if not answer or not asked or answer.previous then
    return false
  end
  if answer.request_id then
    client.cancel(answer.client_id, answer.request_id)
  end
  answer.previous = true
  send(answer, asked)
  draw(answer)
  return true
end

-- ── what the daemon says ──

--- Handler of `cag/partial`: the next piece, in its turn; what belongs to no running answer is left alone.
---@param partial cag.Partial
function M.partial(partial)
  local answer = M.running()
  if not answer or answer.id ~= partial.id then
    return
  end
  answer.early[partial.seq] = partial.text
  local piece = ''
  while answer.early[answer.seq] do
    piece = piece .. answer.early[answer.seq]
    answer.early[answer.seq] = nil
    answer.seq = answer.seq + 1
  end
  if piece == '' then
    return
  end
  answer.text = answer.text .. piece
  if answer.state == 'waiting' then
    answer.state = 'streaming'
    draw(answer)
  else
    require('cag.window').append(answer, piece)
  end
end

--- Whether the running answer waits for a reading that an earlier version would spare it.
---@param answer cag.Answer
---@return boolean
local function could_be_earlier(answer)
  local document = status.document(answer.client_id, answer.document)
  if answer.previous or not document or not document.cached or document.cached.version == document.version then
    return false
  end
  if document.state ~= 'reading' and document.state ~= 'waiting' then
    return false
  end
  local waited = (vim.uv.hrtime() - answer.since) / 1e6
  return waited > PATIENCE_MS or (document.secondsLeft or 0) * 1000 > PATIENCE_MS
end

--- The state has changed: what waits shows it, and what was answered from another version is marked.
---@param client_id integer
function M.status_changed(client_id)
  for _, answer in ipairs(M.list) do
    if answer.state == 'waiting' and answer.client_id == client_id then
      answer.offered = answer.offered or could_be_earlier(answer)
      draw(answer)
    elseif note_change(answer, client_id) then
      draw(answer)
    end
  end
end

--- The daemon has ended: nothing more will come.
---@param client_id integer
---@param message string
---@param level integer
function M.gone(client_id, message, level)
  local answer = M.running()
  if answer and answer.client_id == client_id then
    fail(answer, { message = message, level = level })
  end
end

return M
