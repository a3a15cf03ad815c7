--- What the user is told: sentences, each at its level, none of them again and again.

local M = {}

local LEVELS = vim.log.levels

--- How bad a failure is, by the reason that the daemon gives. What is not here is an error.
---@type table<string, integer>
M.LEVELS = {
  documentNotFound = LEVELS.WARN,
  documentEmpty = LEVELS.WARN,
  documentUnreadable = LEVELS.WARN,
  documentTooLong = LEVELS.WARN,
  questionTooLong = LEVELS.WARN,
  settingsChanged = LEVELS.INFO,
  shuttingDown = LEVELS.INFO,
  workerRestarted = LEVELS.WARN,
}

--- One failure reaches us as a status and as the reply to a question: within so many seconds it is told once.
local TWIN_SECONDS = 3

local told = {} ---@type table<string, true>
local twin = { message = '', at = 0 } ---@type { message: string, at: number }

---@return number
local function seconds()
  return vim.uv.hrtime() / 1e9
end

---@param message string
---@param level integer
local function notify(message, level)
  vim.notify('cag: ' .. message, level, { title = 'cag' })
end

---@param message string
function M.info(message)
  notify(message, LEVELS.INFO)
end

---@param message string
function M.warn(message)
  notify(message, LEVELS.WARN)
end

---@param message string
function M.error(message)
  notify(message, LEVELS.ERROR)
end

--- Tell something once, until `forget`.
---@param message string
---@param level integer
function M.once(message, level)
  if not told[message] then
    told[message] = true
    notify(message, level)
  end
end

--- Tell why the daemon has failed: once, however often it is started again.
---@param message string
---@param level integer
function M.failed(message, level)
  twin = { message = message, at = seconds() }
  M.once(message, level)
end

--- Tell why what the user wanted could not be done.
---@param message string
---@param level integer
function M.failure(message, level)
  if message == twin.message and seconds() - twin.at < TWIN_SECONDS then
    return
  end
  told[message] = true
  notify(message, level)
end

--- How bad a failure of that reason is.
---@param reason? string
---@return integer level
function M.level(reason)
  return M.LEVELS[reason or ''] or LEVELS.ERROR
end

--- What was told once may be told again: the user has started anew.
function M.forget()
  told = {}
end

return M
