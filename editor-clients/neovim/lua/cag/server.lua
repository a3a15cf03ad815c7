--- How the daemon is configured: what `vim.lsp.enable('cag')` finds, and what each client is started with.

local config = require('cag.config')
local find = require('cag.find')
local notice = require('cag.notice')
local protocol = require('cag.protocol')

local M = {}

M.NAME = 'cag'

local modern = vim.fn.has('nvim-0.11') == 1

--- What lsp/cag.lua returns: the user's options, to be overridden by `vim.lsp.config('cag', …)`.
---@return vim.lsp.Config
function M.config()
  local options = config.get()
  local attach = require('cag.attach')
  if modern then
    vim.schedule(attach.watch) -- who reads this is about to enable it
  end
  return {
    cmd = options.cmd or { find.program() or 'cag-daemon' },
    settings = options.settings and {
      cag = options.settings --[[@as table]],
    } or nil,
    workspace_required = true,
    -- Neovim is not told of a root, so it starts nothing by itself: a client needs our hooks, and only the document
    -- is attached to it.
    root_dir = function(bufnr)
      attach.consider(bufnr)
    end,
  }
end

--- Have the options looked up anew, where Neovim keeps what came of them, too.
function M.reread()
  config.reread()
  if modern then
    vim.lsp.config(M.NAME, {})
  end
end

--- The configuration in force.
---@return vim.lsp.Config
function M.resolved()
  ---@diagnostic disable-next-line: undefined-field (declared as a function, for the docs)
  local resolved = modern and vim.deepcopy(vim.lsp.config.cag) or M.config()
  resolved.name = M.NAME
  return resolved
end

--- The program of a configuration, as messages name it.
---@param resolved { cmd?: string[]|function }
---@return string
function M.program(resolved)
  local cmd = resolved.cmd
  return type(cmd) == 'table' and cmd[1] or M.NAME
end

--- The name of the document, as the daemon will have it: flags go before the environment, and that before settings.
---@param resolved vim.lsp.Config
---@return string
function M.document_name(resolved)
  local cmd = type(resolved.cmd) == 'table' and resolved.cmd or {} --[[@as string[] ]]
  for index, argument in ipairs(cmd) do
    local value = argument == '--document' and cmd[index + 1] or argument:match('^%-%-document=(.+)')
    if value then
      return value
    end
  end
  local environment = vim.tbl_get(resolved, 'cmd_env', 'CAG_DOCUMENT') or vim.env.CAG_DOCUMENT
  if type(environment) == 'string' and environment ~= '' then
    return environment
  end
  local set = vim.tbl_get(resolved, 'settings', 'cag', 'document')
  return type(set) == 'string' and set ~= '' and set or protocol.DEFAULT_DOCUMENT
end

--- Why a program of that configuration cannot be started; nil where it can.
---@param resolved vim.lsp.Config
---@return string?
function M.missing(resolved)
  local cmd = resolved.cmd
  if type(cmd) == 'table' and vim.fn.executable(cmd[1]) == 0 then
    return find.missing(cmd)
  end
end

--- Ours, then the user's.
---@param ours function
---@param theirs? function|function[]
---@return function[]
local function both(ours, theirs)
  return vim.list_extend({ ours }, type(theirs) == 'table' and theirs or { theirs })
end

---@param theirs? fun(params: lsp.InitializeParams, config: vim.lsp.ClientConfig)
---@return fun(params: lsp.InitializeParams, config: vim.lsp.ClientConfig)
local function before_init(theirs)
  return function(params, client_config)
    local given = params.initializationOptions
    params.initializationOptions = vim.tbl_extend(
      'force',
      type(given) == 'table' and given or {},
      vim.tbl_get(client_config, 'settings', 'cag') or {},
      { showAnswers = false } -- answers have a window of their own
    )
    if theirs then
      theirs(params, client_config)
    end
  end
end

--- What comes from the daemon unasked; the user's handlers after ours, but for messages in place of them.
---@param theirs table<string, function>
---@return table<string, function>
local function handlers(theirs)
  ---@type table<string, function>
  local ours = {
    [protocol.METHODS.partial] = function(_, partial)
      require('cag.answers').partial(partial)
    end,
    [protocol.METHODS.status_changed] = function(_, status, context)
      require('cag.status').changed(context.client_id, status)
    end,
  }
  for method, handler in pairs(ours) do
    local more = theirs[method]
    ours[method] = more and function(...)
      handler(...)
      return more(...)
    end or handler
  end
  return vim.tbl_extend('force', {
    -- In place of Neovim's own, which says the same again and again.
    ['window/showMessage'] = function(_, params)
      local levels = { vim.log.levels.ERROR, vim.log.levels.WARN }
      notice.once(params.message, levels[params.type] or vim.log.levels.INFO)
      return vim.NIL
    end,
  }, theirs, ours)
end

--- What a client of that project is started with: the configuration in force, our own hooks before the user's.
---@param resolved vim.lsp.Config
---@param root string
---@return vim.lsp.ClientConfig
function M.client_config(resolved, root)
  local client = require('cag.client')
  resolved.root_dir = root
  local set = vim.tbl_get(resolved, 'settings', 'cag')
  if set ~= nil and resolved.settings then
    resolved.settings.cag = config.settings(set, 'settings.cag')
  end
  resolved.before_init = before_init(resolved.before_init)
  resolved.on_init = both(client.initialized, resolved.on_init)
  resolved.on_exit = both(vim.schedule_wrap(client.ended), resolved.on_exit)
  resolved.handlers = handlers(resolved.handlers or {})
  return resolved --[[@as vim.lsp.ClientConfig]]
end

--- The sentence for a daemon that this plugin cannot talk to; nil for one that it can.
---@param said cag.Experimental What it says of itself.
---@param version string? The daemon's own.
---@param program string
---@return string?
function M.mismatch(said, version, program)
  local speaks = type(said.protocolVersion) == 'number' and said.protocolVersion or nil
  local features = type(said.features) == 'table' and said.features or {}
  local lacks = vim.tbl_filter(function(feature)
    return not vim.tbl_contains(features, feature)
  end, protocol.FEATURES)
  if speaks == protocol.PROTOCOL_VERSION and #lacks == 0 then
    return nil
  end
  local name = vim.trim(('%s %s'):format(program, version or ''))
  local ours = ('this plugin speaks version %d'):format(protocol.PROTOCOL_VERSION)
  local upgrade = 'upgrade it with: ' .. find.upgrade_command(program)
  if speaks == nil then
    return ('%s speaks no version of the protocol that is known here, %s; %s'):format(name, ours, upgrade)
  end
  if speaks == protocol.PROTOCOL_VERSION then
    return ('%s is older than this plugin, and lacks %s; %s'):format(name, table.concat(lacks, ', '), upgrade)
  end
  local step = speaks > protocol.PROTOCOL_VERSION and 'take the plugin that came with it: cag-daemon client neovim'
    or upgrade
  return ('%s speaks version %d of the protocol, %s; %s'):format(name, speaks, ours, step)
end

return M
