--- Texts and positions: UTF-16 code units, which the protocol counts in, and bytes, which Neovim counts in.

local M = {}

local modern = vim.fn.has('nvim-0.11') == 1

--- The byte at which a UTF-16 code unit begins; past the end it is the text's length.
---@param text string
---@param units integer
---@return integer byte
function M.byte(text, units)
  if modern then
    return vim.str_byteindex(text, 'utf-16', units, false)
  end
  ---@diagnostic disable-next-line: param-type-mismatch
  local ok, byte = pcall(vim.str_byteindex, text, units, true)
  return ok and byte or #text
end

--- How many UTF-16 code units stand before a byte; past the end: how many there are.
---@param text string
---@param byte integer
---@return integer units
function M.units(text, byte)
  byte = math.min(byte, #text)
  if modern then
    return vim.str_utfindex(text, 'utf-16', byte, false)
  end
  ---@diagnostic disable-next-line: param-type-mismatch
  return select(2, vim.str_utfindex(text, byte))
end

--- A part of a text, by UTF-16 code units.
---@param text string
---@param from integer
---@param to integer
---@return string
function M.slice(text, from, to)
  return text:sub(M.byte(text, from) + 1, M.byte(text, to))
end

--- A text as it is compared, where any white space is as good as any other.
---@param text string
---@return string
function M.squeezed(text)
  return (vim.trim(text):gsub('%s+', ' '))
end

--- A text in at most that many columns, with an ellipsis where something is left out.
---@param text string
---@param columns integer
---@return string
function M.fit(text, columns)
  if vim.fn.strdisplaywidth(text) <= columns then
    return text
  end
  local length = math.min(vim.fn.strchars(text, 1), columns)
  while length > 0 and vim.fn.strdisplaywidth(vim.fn.strcharpart(text, 0, length, 1)) > columns - 1 do
    length = length - 1
  end
  return vim.trim(vim.fn.strcharpart(text, 0, length, 1)) .. '…'
end

--- A count as people read it: `12,000`.
---@param number integer
---@return string
function M.count(number)
  local digits = ('%d'):format(number)
  local head = #digits % 3
  local rest = digits:sub(head + 1):gsub('(%d%d%d)', ',%1')
  return head == 0 and rest:sub(2) or digits:sub(1, head) .. rest
end

--- How long something took: `0.4 s`, `12 s`, `3 min 20 s`.
---@param milliseconds number
---@return string
function M.duration(milliseconds)
  local seconds = milliseconds / 1000
  if seconds < 9.95 then
    return ('%.1f s'):format(seconds)
  end
  seconds = math.floor(seconds + 0.5)
  return seconds < 60 and ('%d s'):format(seconds) or ('%d min %d s'):format(seconds / 60, seconds % 60)
end

return M
