--- What the user has selected, as the daemon wants it.

local text = require('cag.text')

local M = {}

local BLOCK = '\22'

--- The URI of a buffer; one that is no file has a name that no file has.
---@param bufnr integer
---@return string
local function uri_of(bufnr)
  return vim.api.nvim_buf_get_name(bufnr) ~= '' and vim.uri_from_bufnr(bufnr) or ('untitled:buffer-%d'):format(bufnr)
end

---@param bufnr integer
---@param lnum integer
---@return string
local function line_of(bufnr, lnum)
  return vim.api.nvim_buf_get_lines(bufnr, lnum - 1, lnum, false)[1] or ''
end

--- From a line's byte up to another's.
---@param bufnr integer
---@param first { lnum: integer, byte: integer }
---@param last { lnum: integer, byte: integer }
---@return lsp.Range
local function range_of(bufnr, first, last)
  ---@param place { lnum: integer, byte: integer }
  ---@return lsp.Position
  local function position(place)
    return { line = place.lnum - 1, character = text.units(line_of(bufnr, place.lnum), place.byte) }
  end
  return { start = position(first), ['end'] = position(last) }
end

--- Whole lines.
---@param bufnr integer
---@param first integer
---@param last integer
---@return cag.Selection
function M.lines(bufnr, first, last)
  local range = range_of(bufnr, { lnum = first, byte = 0 }, { lnum = last, byte = #line_of(bufnr, last) })
  local lines = vim.api.nvim_buf_get_lines(bufnr, first - 1, last, false)
  return { uri = uri_of(bufnr), range = range, text = table.concat(lines, '\n') }
end

--- The column of the screen in which the character at a place begins.
---@param place integer[] As of `getpos()`.
---@return integer
local function column_of(place)
  return vim.fn.virtcol({ place[2], place[3] }, true)[1] --[[@as integer]]
end

--- The byte of the current buffer's line that stands in a column of the screen.
---@param lnum integer
---@param column integer
---@return integer
local function byte_at(lnum, column)
  local line = line_of(0, lnum)
  return vim.fn.virtcol({ lnum, '$' }) <= column and #line or vim.fn.virtcol2col(0, lnum, column) - 1
end

--- What is between two places of the current buffer, as Visual mode of that kind has it.
---@param from integer[] As of `getpos()`.
---@param to integer[]
---@param mode string `v`, `V` or CTRL-V
---@return cag.Selection
function M.between(from, to, mode)
  if from[2] > to[2] or (from[2] == to[2] and from[3] > to[3]) then
    from, to = to, from
  end
  if mode == 'V' then
    return M.lines(0, from[2], to[2])
  end
  local pieces = vim.fn.getregion(from, to, { type = mode })
  local start = { lnum = from[2], byte = math.min(from[3] - 1, #line_of(0, from[2])) }
  local stop = { lnum = to[2], byte = from[2] == to[2] and start.byte or 0 }
  if mode == BLOCK then
    -- A block has columns of the screen, and its corners may be the two others.
    local left = math.min(column_of(from), column_of(to)) --[[@as integer]]
    start.byte, stop.byte = byte_at(start.lnum, left), byte_at(stop.lnum, left)
  end
  stop.byte = stop.byte + #pieces[#pieces]
  return { uri = uri_of(0), range = range_of(0, start, stop), text = table.concat(pieces, '\n') }
end

--- What is selected in Visual mode at this moment; nil in another mode.
---@return cag.Selection?
function M.visual()
  local mode = vim.fn.mode()
  if mode == 'v' or mode == 'V' or mode == BLOCK then
    return M.between(vim.fn.getpos('v'), vim.fn.getpos('.'), mode)
  end
end

--- What a command's range means: the last selection where it is that selection's, else whole lines.
---@param first integer
---@param last integer
---@return cag.Selection
function M.of_range(first, last)
  local from, to, mode = vim.fn.getpos("'<"), vim.fn.getpos("'>"), vim.fn.visualmode()
  if first == from[2] and last == to[2] and mode ~= '' then
    return M.between(from, to, mode)
  end
  return M.lines(0, first, last)
end

return M
