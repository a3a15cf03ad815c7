--- From an answer's words to where they stand in the document, also when that has been edited since.

local client = require('cag.client')
local notice = require('cag.notice')
local page = require('cag.page')
local protocol = require('cag.protocol')
local text = require('cag.text')

local M = {}

local FLASH_MS = 800

local namespace = vim.api.nvim_create_namespace('cag.cited')

--- A stretch of a buffer: in bytes, from 0.
---@class cag.Place
---@field row integer
---@field col integer
---@field end_row integer
---@field end_col integer

---@param bufnr integer
---@param range lsp.Range
---@return cag.Place
local function place_of(bufnr, range)
  local last = vim.api.nvim_buf_line_count(bufnr) - 1
  ---@param position lsp.Position
  ---@return integer row, integer col
  local function clamped(position)
    local row = math.min(position.line, last)
    local line = vim.api.nvim_buf_get_lines(bufnr, row, row + 1, false)[1]
    return row, position.line > last and #line or text.byte(line, position.character)
  end
  local row, col = clamped(range.start)
  local end_row, end_col = clamped(range['end'])
  return { row = row, col = col, end_row = end_row, end_col = end_col }
end

---@param bufnr integer
---@param place cag.Place
---@return string
local function text_at(bufnr, place)
  local lines = vim.api.nvim_buf_get_text(bufnr, place.row, place.col, place.end_row, place.end_col, {})
  return table.concat(lines, '\n')
end

--- The words of an answer that a citation is about.
---@param answer cag.Answer
---@param citation cag.Citation
---@return string
local function words_of(answer, citation)
  return text.slice(answer.text, citation.answerRange[1], citation.answerRange[2])
end

--- The buffer of a document, loaded.
---@param uri string
---@return integer bufnr
local function buffer_of(uri)
  local bufnr = vim.uri_to_bufnr(uri)
  vim.fn.bufload(bufnr)
  return bufnr
end

--- Whether a window is one to read a file in.
---@param win integer
---@return boolean
local function is_normal(win)
  return vim.api.nvim_win_is_valid(win)
    and vim.api.nvim_win_get_tabpage(win) == vim.api.nvim_get_current_tabpage()
    and vim.api.nvim_win_get_config(win).relative == ''
    and vim.bo[vim.api.nvim_win_get_buf(win)].buftype == ''
end

--- The window to show a buffer in: one that does already, else the one that the question came from, else a new one.
---@param bufnr integer
---@param origin? integer
---@return integer win
local function window_for(bufnr, origin)
  local windows = vim.api.nvim_tabpage_list_wins(0)
  for _, win in ipairs(vim.list_extend({ origin }, windows)) do
    if is_normal(win) and vim.api.nvim_win_get_buf(win) == bufnr then
      return win
    end
  end
  for _, win in ipairs(vim.list_extend({ origin }, windows)) do
    if is_normal(win) and not vim.wo[win].winfixbuf then
      return win
    end
  end
  vim.cmd('topleft split')
  local win = vim.api.nvim_get_current_win()
  vim.wo[win].winfixbuf = false -- the window it was split from may keep its buffer
  return win
end

--- Show a place of a buffer, and its words for a moment.
---@param bufnr integer
---@param place cag.Place
---@param origin? integer
local function show(bufnr, place, origin)
  local win = window_for(bufnr, origin)
  vim.api.nvim_set_current_win(win)
  vim.cmd("normal! m'") -- CTRL-O leads back
  if vim.api.nvim_win_get_buf(win) ~= bufnr then
    vim.api.nvim_win_set_buf(win, bufnr)
  end
  vim.bo[bufnr].buflisted = true
  vim.api.nvim_win_set_cursor(win, { place.row + 1, place.col })
  vim.cmd('normal! zv')
  vim.api.nvim_buf_clear_namespace(bufnr, namespace, 0, -1)
  local mark = vim.api.nvim_buf_set_extmark(bufnr, namespace, place.row, place.col, {
    end_row = place.end_row,
    end_col = place.end_col,
    hl_group = 'CagFlash',
    strict = false,
    priority = 200,
  })
  vim.defer_fn(function()
    if vim.api.nvim_buf_is_valid(bufnr) then
      vim.api.nvim_buf_del_extmark(bufnr, namespace, mark)
    end
  end, FLASH_MS)
end

--- Ask the daemon where words stand by now.
---@param answer cag.Answer
---@param uri string
---@param words string
---@param callback fun(citations: cag.Citation[])
local function locate(answer, uri, words, callback)
  local asked, why = client.start(answer.root)
  if not asked then
    return notice.failure(why --[[@as string]], vim.log.levels.ERROR)
  end
  client.when_ready(asked, function()
    local params = { text = words, document = uri }
    client.request(asked, protocol.METHODS.locate, params, function(problem, result)
      if problem then
        notice.failure(problem.message, problem.level)
      else
        callback(result.citations)
      end
    end)
  end)
end

--- Go to the words of a citation. Where the document has been edited since, to where they stand now.
---@param answer cag.Answer
---@param citation cag.Citation
---@param origin? integer The window that the question came from.
---@param on_found? fun() Called before the place is shown.
function M.jump(answer, citation, origin, on_found)
  on_found = on_found or function() end
  local words = words_of(answer, citation)
  local bufnr = buffer_of(citation.location.uri)
  local place = place_of(bufnr, citation.location.range)
  if text.squeezed(text_at(bufnr, place)) == text.squeezed(words) then
    on_found()
    return show(bufnr, place, origin)
  end
  locate(answer, citation.location.uri, words, function(citations)
    local name = page.name_of(citation.location.uri, answer.root)
    table.sort(citations, function(one, other)
      return one.answerRange[2] - one.answerRange[1] > other.answerRange[2] - other.answerRange[1]
    end)
    local best = citations[1]
    if not best then
      return notice.info(('these words are no longer in %s'):format(name))
    end
    local found = buffer_of(best.location.uri)
    on_found()
    show(found, place_of(found, best.location.range), origin)
    if #text.slice(words, best.answerRange[1], best.answerRange[2]) < #vim.trim(words) then
      notice.info(('only these of the cited words are still in %s'):format(name))
    end
  end)
end

---@param answer cag.Answer
---@param citations cag.Citation[]
local function set_quickfix(answer, citations)
  local items = {}
  for _, citation in ipairs(citations) do
    local bufnr = buffer_of(citation.location.uri)
    local place = place_of(bufnr, citation.location.range)
    items[#items + 1] = {
      bufnr = bufnr,
      lnum = place.row + 1,
      col = place.col + 1,
      end_lnum = place.end_row + 1,
      end_col = place.end_col + 1,
      text = text.squeezed(words_of(answer, citation)),
    }
  end
  vim.fn.setqflist({}, ' ', { title = answer.question, items = items })
end

--- Make a quickfix list of an answer's citations, as they stand now.
---@param answer cag.Answer
---@param callback? fun(count: integer)
function M.to_quickfix(answer, callback)
  local result = answer.result
  if not result then
    return
  end
  local function set(citations)
    if #citations > 0 then
      set_quickfix(answer, citations)
    end
    if callback then
      callback(#citations)
    end
  end
  if answer.changed then
    locate(answer, result.document.uri, answer.text, set)
  else
    set(result.citations)
  end
end

return M
