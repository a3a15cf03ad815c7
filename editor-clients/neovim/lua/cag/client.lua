--- The daemons that run for this Neovim: their start, which one is meant, what is sent to it, their end.

local find = require('cag.find')
local notice = require('cag.notice')
local protocol = require('cag.protocol')
local server = require('cag.server')

local M = {}

local INIT_POLL_MS = 20
local END_MS = 3000 -- the contract says two seconds
local SIGTERM = 15 -- how Neovim ends what has not answered `initialize` yet

local LEVELS = vim.log.levels

local modern = vim.fn.has('nvim-0.11') == 1

--- A request that failed: in one sentence, and how bad it is.
---@class cag.Problem
---@field message string
---@field level integer
---@field reason? string

---@class cag.Record
---@field root string
---@field server? lsp.ServerInfo
---@field experimental? cag.Experimental
---@field refused? string Why it may not be asked.
---@field stopping? boolean We ended it.
---@field after fun()[] To be run when it has ended.

---@type table<integer, cag.Record>
local records = {}

--- Programs that failed at their start: they are not started unasked again.
---@type table<string, true>
local given_up = {}

--- A client's method: functions up to Neovim 0.10, methods since.
---@param client vim.lsp.Client
---@param method string
local function call(client, method, ...)
  if modern then
    return client[method](client, ...)
  end
  return client[method](...)
end

-- ── start ──

--- The client of that project, started where there is none. The document's buffers are attached to it.
---@param root string
---@return vim.lsp.Client? client
---@return string? why There is none.
function M.start(root)
  local client = M.at(root)
  local resolved = server.resolved()
  local _, document = find.document(server.document_name(resolved), root)
  if not client then
    local missing = server.missing(resolved)
    if missing then
      return nil, missing
    end
    local client_config = server.client_config(resolved, root)
    local id
    if modern then
      id = vim.lsp.start(client_config, { attach = false, reuse_client = resolved.reuse_client })
    else
      id = vim.lsp.start_client(client_config) ---@diagnostic disable-line: deprecated
    end
    client = id and vim.lsp.get_client_by_id(id) or nil
    if not client then
      return nil, ('%s could not be started; see :Cag log'):format(server.program(resolved))
    end
    records[client.id] = records[client.id] or { root = root, after = {} }
  end
  for _, bufnr in ipairs(vim.api.nvim_list_bufs()) do
    local path = vim.api.nvim_buf_is_loaded(bufnr) and find.file(bufnr)
    if path and document and find.same(path, document) then
      vim.lsp.buf_attach_client(bufnr, client.id)
    end
  end
  return client
end

--- Hook: the daemon has answered `initialize`. One that speaks another protocol is let go.
---@param client vim.lsp.Client
---@param result lsp.InitializeResult
function M.initialized(client, result)
  local record = records[client.id] or { root = client.config.root_dir or '', after = {} }
  records[client.id] = record
  record.server = result.serverInfo
  record.experimental = vim.tbl_get(result, 'capabilities', 'experimental', 'cag') or {}
  local version = record.server and record.server.version
  record.refused = server.mismatch(record.experimental, version, server.program(client.config))
  if record.refused then
    given_up[server.program(client.config)] = true
    require('cag.answers').gone(client.id, record.refused, LEVELS.ERROR)
    notice.once(record.refused, LEVELS.ERROR)
    M.stop(client)
  end
end

--- Whether a program failed at its start, and is not to be started unasked.
---@param resolved vim.lsp.Config
---@return boolean
function M.is_given_up(resolved)
  return given_up[server.program(resolved)] or false
end

-- ── which one ──

--- The clients that are there, with where each of them belongs.
---@return { client: vim.lsp.Client, record: cag.Record }[]
function M.all()
  local found = {}
  for id, record in vim.spairs(records) do
    local client = vim.lsp.get_client_by_id(id)
    if client and not record.stopping and not call(client, 'is_stopped') then
      found[#found + 1] = { client = client, record = record }
    end
  end
  return found
end

--- The client of that project.
---@param root string
---@return vim.lsp.Client?
function M.at(root)
  for _, each in ipairs(M.all()) do
    if find.same(each.record.root, root) then
      return each.client
    end
  end
end

--- The client of that id, where it may still be asked things.
---@param client_id integer
---@return vim.lsp.Client?
function M.alive(client_id)
  for _, each in ipairs(M.all()) do
    if each.client.id == client_id then
      return each.client
    end
  end
end

--- What is known of a client.
---@param client_id integer
---@return cag.Record?
function M.record(client_id)
  return records[client_id]
end

--- The client that is running for a buffer: its project's, else any.
---@param bufnr integer
---@return vim.lsp.Client?
function M.running(bufnr)
  local path = find.file(bufnr)
  local best, deepest = nil, -1
  for _, each in ipairs(M.all()) do
    local depth = path and find.inside(path, each.record.root) and #each.record.root or 0
    if depth > deepest then
      best, deepest = each.client, depth
    end
  end
  return best
end

--- The client to use for a buffer: its project's, started where that is needed; else one that is running.
---@param bufnr integer
---@return vim.lsp.Client? client
---@return string? why There is none.
---@return integer? level
function M.pick(bufnr)
  local resolved = server.resolved()
  local name = server.document_name(resolved)
  local path = find.file(bufnr)
  local folder = path and vim.fs.dirname(path) or vim.fn.getcwd()
  local root = find.document(name, folder)
  if root then
    given_up[server.program(resolved)] = nil -- this time it is asked for
    local client, why = M.start(root)
    return client, why, LEVELS.ERROR
  end
  local client = M.running(bufnr)
  if client then
    return client
  end
  local where = find.is_absolute(name) and '' or (' in %s or above it'):format(vim.fn.fnamemodify(folder, ':~'))
  local message = 'there is no %s%s: create it, or name another file in the setting document (:help cag-document)'
  return nil, message:format(name, where), LEVELS.WARN
end

--- Call back when the client may be asked things. Where it ends before, `answers.gone` says so.
---@param client vim.lsp.Client
---@param callback fun()
function M.when_ready(client, callback)
  local record = records[client.id]
  if not record or record.refused or call(client, 'is_stopped') then
    return
  end
  if client.initialized and record.experimental then
    return callback()
  end
  vim.defer_fn(function()
    M.when_ready(client, callback)
  end, INIT_POLL_MS)
end

-- ── requests ──

--- Send a request. The callback is not called where it was cancelled: Neovim keeps that reply to itself.
---@param client vim.lsp.Client
---@param method string
---@param params table
---@param callback fun(problem?: cag.Problem, result?: any)
---@return integer? request_id
function M.request(client, method, params, callback)
  local sent, request_id = call(
    client,
    'request',
    method,
    next(params) and params or vim.empty_dict(),
    function(err, result)
      if not err then
        callback(nil, result)
      elseif err.code ~= protocol.CODES.cancelled then
        local reason = type(err.data) == 'table' and err.data.reason or nil
        callback({ message = err.message, reason = reason, level = notice.level(reason) })
      end
    end
  )
  if not sent then
    callback({ message = 'cag-daemon is ending; ask again', level = LEVELS.WARN })
    return nil
  end
  return request_id
end

--- Tell a daemon that runs something that it need not answer; one without that feature hears nothing.
---@param client vim.lsp.Client
---@param feature string
---@param method string
---@param params table
function M.hint(client, feature, method, params)
  local said = records[client.id] and records[client.id].experimental
  local features = said and type(said.features) == 'table' and said.features or {}
  if vim.tbl_contains(features, feature) and not call(client, 'is_stopped') then
    call(client, 'notify', method, params)
  end
end

---@param client_id integer
---@param request_id integer
function M.cancel(client_id, request_id)
  local client = vim.lsp.get_client_by_id(client_id)
  if client and client.requests[request_id] and not call(client, 'is_stopped') then
    call(client, 'cancel_request', request_id)
  end
end

--- Send the settings in force to what is running. What is not set any more has the daemon's default again.
function M.push_settings()
  local now = vim.tbl_get(server.resolved(), 'settings', 'cag') or {}
  for _, each in ipairs(M.all()) do
    local before = vim.tbl_get(each.client.settings, 'cag') or {}
    local settings = vim.tbl_extend('force', {}, now)
    for key in pairs(before) do
      settings[key] = settings[key] == nil and vim.NIL or settings[key]
    end
    if next(settings) then
      each.client.settings = { cag = settings }
      call(each.client, 'notify', 'workspace/didChangeConfiguration', { settings = each.client.settings })
    end
  end
end

-- ── the end ──

--- Hook: the daemon's process has ended.
---@param code integer
---@param signal integer
---@param client_id integer
function M.ended(code, signal, client_id)
  local record = records[client_id]
  records[client_id] = nil
  local how = signal ~= 0 and ('signal %d'):format(signal) or ('exit code %d'):format(code)
  local message, level = ('cag-daemon has ended (%s); the next question starts it again'):format(how), LEVELS.WARN
  if record and not record.experimental and not record.stopping and signal ~= SIGTERM then
    message, level = ('cag-daemon ended before it was ready (%s); :Cag log shows why'):format(how), LEVELS.ERROR
    given_up[server.program(server.resolved())] = true
  end
  require('cag.answers').gone(client_id, message, level)
  if level == LEVELS.ERROR then
    notice.once(message, level)
  end
  require('cag.status').gone(client_id)
  for _, after in ipairs(record and record.after or {}) do
    after()
  end
end

--- End the client; then the callback.
---@param client vim.lsp.Client
---@param callback? fun()
function M.stop(client, callback)
  local record = records[client.id]
  if record then
    record.stopping = true
    record.after[#record.after + 1] = callback
  end
  call(client, 'stop')
  vim.defer_fn(function()
    if records[client.id] then
      client.rpc.terminate() -- to stop a client that is stopping does nothing on Neovim 0.11
    end
  end, END_MS)
end

--- End the buffer's client and start it with the configuration in force, or just start it.
---@param bufnr integer
---@param callback fun(client?: vim.lsp.Client, why?: string, level?: integer)
function M.restart(bufnr, callback)
  given_up = {}
  notice.forget()
  server.reread()
  local running = M.running(bufnr)
  local record = running and records[running.id]
  if not running or not record then
    return callback(M.pick(bufnr))
  end
  M.stop(running, function()
    callback(M.start(record.root))
  end)
end

return M
