--- The plugin's options: from `setup`, else from `vim.g.cag`, else the default. A bad one is named, and not used.

local notice = require('cag.notice')
local protocol = require('cag.protocol')

local M = {}

---@class cag.WindowOptions
---@field kind? 'float'|'split'|'vsplit' Where answers are shown.
---@field width? number Columns; below 1 a share of the screen.
---@field height? number Lines; below 1 a share of the screen. A float takes no more than it needs.
---@field border? string|string[] As of `nvim_open_win()`; else 'winborder', else `rounded`.

--- The keys of the answer's window. `false`: none.
---@class cag.Keys
---@field close? string|false Close; an answer that is still running is stopped.
---@field stop? string|false Stop the answer.
---@field jump? string|false Go to the cited words under the cursor.
---@field earlier? string|false Show the answer before this one.
---@field later? string|false Show the answer after this one.
---@field ask? string|false Ask something else.
---@field again? string|false Ask the same again.
---@field longer? string|false Go on where an answer was cut.
---@field previous? string|false Answer from the earlier version, without waiting.
---@field citations? string|false List the cited places in the quickfix window.
---@field help? string|false Show these keys.

---@class cag.Options
---@field cmd? string[] The program, and its arguments.
---@field settings? cag.Settings The daemon's settings.
---@field window? cag.WindowOptions
---@field keys? cag.Keys
---@field quickfix? boolean Whether each answer puts its citations into a quickfix list.

--- The options in force.
---@class cag.Config
---@field cmd? string[]
---@field settings? cag.Settings
---@field window cag.WindowOptions
---@field keys table<string, string|false>
---@field quickfix boolean

---@type cag.Config
local DEFAULTS = {
  cmd = nil, -- `cag-daemon`, wherever it is
  settings = nil,
  window = { kind = 'float' },
  keys = {
    close = 'q',
    stop = '<C-c>',
    jump = '<CR>',
    earlier = '[[',
    later = ']]',
    ask = 'a',
    again = 'r',
    longer = '+',
    previous = 'p',
    citations = 'c',
    help = 'g?',
  },
  quickfix = false,
}

local KINDS = { 'float', 'split', 'vsplit' }

---@type cag.Options?
local given

---@type cag.Config?
local options

---@type table<string, true>
local named = {}

--- Say once what is wrong with an option, and what is used.
---@param key string
---@param value any
---@param accepted string
local function complain(key, value, accepted)
  local shown = vim.inspect(value, { newline = ' ', indent = '' })
  local message = ('%s: %s is not accepted (%s); it is left out.'):format(key, shown, accepted)
  if not named[message] then
    named[message] = true
    notice.warn(message)
  end
end

--- The value where it is accepted; else nil, after a word about it.
---@param key string
---@param value any
---@param ok boolean
---@param accepted string
local function check(key, value, ok, accepted)
  if value == nil or ok then
    return value
  end
  complain(key, value, accepted)
end

---@param label string
---@param value table<string, any>
---@param keys string[]
local function check_keys(label, value, keys)
  for key, inner in vim.spairs(value) do
    if not vim.tbl_contains(keys, key) then
      complain(label .. tostring(key), inner, 'there are ' .. table.concat(keys, ', '))
    end
  end
end

---@param value any
---@return boolean
local function is_size(value)
  return type(value) == 'number' and value > 0
end

---@param value any
---@return boolean
local function is_command(value)
  return type(value) == 'table' and type(value[1]) == 'string' and value[1] ~= ''
end

---@param user any
---@return cag.WindowOptions
local function window_of(user)
  local window = check('window', user, type(user) == 'table', 'a table') or {}
  check_keys('window.', window, { 'kind', 'width', 'height', 'border' })
  local border = window.border
  return {
    kind = check('window.kind', window.kind, vim.tbl_contains(KINDS, window.kind), 'float, split or vsplit')
      or DEFAULTS.window.kind,
    width = check('window.width', window.width, is_size(window.width), 'a number above 0'),
    height = check('window.height', window.height, is_size(window.height), 'a number above 0'),
    border = check(
      'window.border',
      border,
      type(border) == 'string' or type(border) == 'table',
      'what nvim_open_win() takes'
    ),
  }
end

---@param user any
---@return table<string, string|false>
local function keys_of(user)
  local keys = check('keys', user, type(user) == 'table', 'a table') or {}
  check_keys('keys.', keys, vim.tbl_keys(DEFAULTS.keys))
  local found = {}
  for name, default in pairs(DEFAULTS.keys) do
    local key = keys[name]
    local ok = key == false or (type(key) == 'string' and key ~= '')
    key = check('keys.' .. name, key, ok, 'a key, or false for none')
    if key == nil then
      key = default
    end
    found[name] = key
  end
  return found
end

--- Settings without the keys that the daemon does not know: it would pass them over in silence.
---@param settings any
---@param label string
---@return cag.Settings?
function M.settings(settings, label)
  settings = check(label, settings, type(settings) == 'table', 'a table')
  if settings == nil or next(settings) == nil then
    return nil
  end
  check_keys(label .. '.', settings, protocol.SETTINGS)
  local known = {}
  for _, key in ipairs(protocol.SETTINGS) do
    known[key] = settings[key]
  end
  return known
end

---@param user cag.Options
---@return cag.Config
local function checked(user)
  check_keys('', user, { 'cmd', 'settings', 'window', 'keys', 'quickfix' })
  local quickfix = check('quickfix', user.quickfix, type(user.quickfix) == 'boolean', 'true or false')
  return {
    cmd = check('cmd', user.cmd, is_command(user.cmd), "a list such as { 'cag-daemon' }"),
    settings = M.settings(user.settings, 'settings'),
    window = window_of(user.window),
    keys = keys_of(user.keys),
    quickfix = quickfix or false,
  }
end

--- The options in force.
---@return cag.Config
function M.get()
  if not options then
    local global = vim.g.cag
    if type(global) == 'function' then
      global = global()
    end
    global = check('vim.g.cag', global, type(global) == 'table', 'a table, or a function that gives one') or {}
    options = checked(vim.tbl_deep_extend('force', global, given or {}))
  end
  return options
end

--- Have the options looked up anew: vim.g.cag may be another.
function M.reread()
  options = nil
end

--- Take the user's options. What was given before is forgotten.
---@param user? cag.Options
function M.set(user)
  given = check('setup', user, user == nil or type(user) == 'table', 'a table')
  options = nil
end

return M
