--- The window that answers are shown in: one, in a float or a split, with keys of its own.

local answers = require('cag.answers')
local config = require('cag.config')
local frame = require('cag.frame')
local page = require('cag.page')
local status = require('cag.status')

local M = {}

local namespace = vim.api.nvim_create_namespace('cag.answer')

--- What a highlight group of ours looks like unless the user or a colour scheme says otherwise.
---@type table<string, string>
M.GROUPS = {
  CagQuestion = 'Title',
  CagCited = 'Underlined',
  CagPlace = 'Directory',
  CagQuote = 'Comment',
  CagNote = 'Comment',
  CagHint = 'DiagnosticInfo',
  CagWarning = 'DiagnosticWarn',
  CagError = 'DiagnosticError',
  CagKey = 'Special',
  CagFlash = 'IncSearch',
}

--- The window while it is open, and where the user came from.
---@class cag.View
---@field win integer
---@field buf integer
---@field origin integer

---@type cag.View?
local view

---@type integer?
local scratch

---@type cag.Answer?
local shown

---@type cag.Page?
local drawn

local help = false

---@return cag.View?
local function open_view()
  if view and vim.api.nvim_win_is_valid(view.win) and vim.api.nvim_win_get_buf(view.win) == view.buf then
    return view
  end
end

--- The answer that is shown, or was last; with a buffer: nil where that is none of ours.
---@param bufnr? integer
---@return cag.Answer?
function M.shown(bufnr)
  if bufnr == nil or bufnr == scratch then
    return shown
  end
end

---@param win integer
---@return boolean
local function is_float(win)
  return vim.api.nvim_win_get_config(win).relative ~= ''
end

---@param answer? cag.Answer
---@return boolean
local function is_running(answer)
  return answer ~= nil and (answer.state == 'waiting' or answer.state == 'streaming')
end

---@return integer
local function index_of_shown()
  for index, answer in ipairs(answers.list) do
    if answer == shown then
      return index
    end
  end
  return #answers.list
end

---@param win? integer
---@return cag.Scene
local function scene(win)
  return {
    index = index_of_shown(),
    count = #answers.list,
    running = is_running(shown),
    offered = shown ~= nil and shown.offered,
    cited = drawn ~= nil and #drawn.spots > 0,
    needed = win and vim.api.nvim_win_text_height(win, {}).all or 0,
  }
end

--- Fit the window to what it shows.
---@param win integer
local function fit(win)
  if is_float(win) then
    vim.api.nvim_win_set_config(win, frame.float(scene(win)))
  else
    vim.wo[win][0].winbar = frame.bar(scene(win), vim.api.nvim_win_get_width(win))
  end
end

-- ── its text ──

---@param buf integer
---@return integer row, string line
local function last_line(buf)
  local row = vim.api.nvim_buf_line_count(buf)
  return row, vim.api.nvim_buf_get_lines(buf, row - 1, row, false)[1]
end

--- Whether the cursor is where new text comes: on the last character.
---@param it cag.View
---@return boolean
local function follows(it)
  local cursor = vim.api.nvim_win_get_cursor(it.win)
  local row, line = last_line(it.buf)
  return cursor[1] == row and cursor[2] >= #line + (line == '' and 0 or vim.str_utf_start(line, #line) - 1)
end

---@param it cag.View
local function to_end(it)
  local row, line = last_line(it.buf)
  vim.api.nvim_win_set_cursor(it.win, { row, #line })
end

--- No room is left empty below the text while lines are scrolled out above it: a float grows with its text, and the
--- lines that had to go while it was small do not come back by themselves.
---@param it cag.View
local function fill_from_top(it)
  local top = vim.fn.getwininfo(it.win)[1].topline
  local below = vim.api.nvim_win_text_height(it.win, { start_row = top - 1 }).all
  if top > 1 and below < vim.api.nvim_win_get_height(it.win) then
    vim.api.nvim_win_call(it.win, function()
      vim.fn.winrestview({ topline = 1, skipcol = 0 })
    end)
  end
end

---@param buf integer
---@param change fun()
local function modify(buf, change)
  vim.bo[buf].modifiable = true
  change()
  vim.bo[buf].modifiable = false
end

---@param buf integer
---@param new cag.Page
local function write(buf, new)
  modify(buf, function()
    vim.api.nvim_buf_set_lines(buf, 0, -1, false, new.lines)
  end)
  vim.api.nvim_buf_clear_namespace(buf, namespace, 0, -1)
  for _, mark in ipairs(new.marks) do
    vim.api.nvim_buf_set_extmark(buf, namespace, mark.row, mark.col, {
      end_row = mark.end_row,
      end_col = mark.end_col,
      hl_group = mark.group,
      strict = false,
      priority = 200, -- above what Markdown looks like
    })
  end
end

--- Draw an answer anew, if it is the one that is shown.
---@param answer cag.Answer
function M.draw(answer)
  local it = open_view()
  if not it or answer ~= shown then
    return
  end
  local follow, cursor, before = follows(it), vim.api.nvim_win_get_cursor(it.win), drawn
  local info = vim.fn.getwininfo(it.win)[1]
  local new = page.of(answer, {
    width = info.width - info.textoff,
    status = status.of(answer.client_id),
    document = status.document(answer.client_id, answer.document),
    help = help,
  })
  drawn = new
  write(it.buf, new)
  fit(it.win)
  if not follow then
    vim.api.nvim_win_set_cursor(it.win, { math.min(cursor[1], #new.lines), cursor[2] })
  elseif not is_running(answer) and new.places_row and not (before and before.places_row) then
    vim.api.nvim_win_set_cursor(it.win, { new.places_row + 1, 0 }) -- from here <CR> leads into the document
  else
    to_end(it)
  end
  fill_from_top(it)
end

--- Add a piece to the answer that is shown; all else stays as it is.
---@param answer cag.Answer
---@param piece string
function M.append(answer, piece)
  local it = open_view()
  if not it or answer ~= shown then
    return
  end
  if help then
    return M.draw(answer) -- the answer is not what comes last
  end
  local follow = follows(it)
  modify(it.buf, function()
    vim.api.nvim_buf_set_text(it.buf, -1, -1, -1, -1, vim.split(piece, '\n'))
  end)
  if is_float(it.win) then
    fit(it.win)
  end
  if follow then
    to_end(it)
  end
  fill_from_top(it)
end

-- ── its keys ──

--- The citation that the cursor is on.
---@return cag.Citation?
local function citation_here()
  local it = open_view()
  if not it or not drawn then
    return
  end
  local cursor = vim.api.nvim_win_get_cursor(it.win)
  local row, col = cursor[1] - 1, cursor[2]
  for _, spot in ipairs(drawn.spots) do
    local begun = row > spot.row or (row == spot.row and col >= spot.col)
    local ended = row > spot.end_row or (row == spot.end_row and col >= spot.end_col)
    if begun and not ended then
      return spot.citation
    end
  end
end

local function jump()
  local it, citation, answer = open_view(), citation_here(), shown
  if it and citation and answer then
    require('cag.citations').jump(answer, citation, it.origin, function()
      if open_view() == it and is_float(it.win) then
        M.hide() -- it would lie on what is to be seen
      end
    end)
  end
end

---@param step integer
local function turn(step)
  local it, answer = open_view(), answers.list[index_of_shown() + step]
  if it and answer then
    shown, drawn, help = answer, nil, false
    M.draw(answer)
    if is_running(answer) then
      to_end(it)
    else
      vim.api.nvim_win_set_cursor(it.win, { 1, 0 })
    end
  end
end

---@type table<string, fun()>
local actions = {
  close = function()
    M.close()
  end,
  stop = function()
    answers.stop()
  end,
  jump = jump,
  earlier = function()
    turn(-1)
  end,
  later = function()
    turn(1)
  end,
  help = function()
    help = not help
    if shown then
      M.draw(shown)
    end
  end,
}
for _, name in ipairs({ 'ask', 'again', 'longer', 'previous', 'citations' }) do
  actions[name] = function()
    require('cag')[name]()
  end
end

-- ── open and closed ──

---@return integer buf
local function make_buffer()
  if scratch and vim.api.nvim_buf_is_valid(scratch) then
    return scratch
  end
  local title = 'cag://answer'
  if vim.fn.bufexists(title) == 1 then
    vim.cmd.bwipeout({ title, bang = true }) -- one that a session has restored
  end
  local buf = vim.api.nvim_create_buf(false, true)
  scratch = buf
  vim.api.nvim_buf_set_name(buf, title)
  vim.bo[buf].bufhidden = 'hide'
  vim.api.nvim_buf_call(buf, function()
    -- Silently: where there is no parser for it, Neovim's own file type plugin fails.
    vim.cmd('silent! setlocal filetype=markdown')
  end)
  vim.bo[buf].modifiable = false
  for name, action in pairs(actions) do -- after the file type's own
    local key = config.get().keys[name]
    if key then
      vim.keymap.set('n', key, action, { buffer = buf, nowait = true, desc = 'cag: ' .. name })
    end
  end
  return buf
end

---@param buf integer
---@return integer win
local function make_window(buf)
  local win
  if config.get().window.kind == 'float' then
    win = vim.api.nvim_open_win(buf, true, frame.float(scene()))
  else
    vim.cmd(frame.split())
    win = vim.api.nvim_get_current_win()
    vim.api.nvim_win_set_buf(win, buf)
  end
  for name, value in pairs({
    wrap = true,
    linebreak = true,
    breakindent = true,
    smoothscroll = true,
    spell = false,
    list = false,
    number = false,
    relativenumber = false,
    cursorline = false,
    signcolumn = 'no',
    foldenable = false,
    foldcolumn = '0',
    colorcolumn = '',
    fillchars = 'eob: ',
    conceallevel = 0, -- what the model wrote is what is shown
    statuscolumn = ' ', -- a margin
    winfixbuf = true,
  }) do
    vim.wo[win][0][name] = value
  end
  vim.api.nvim_create_autocmd('WinClosed', {
    pattern = tostring(win),
    once = true,
    desc = 'cag: nobody is left to read on',
    callback = function()
      if view and view.win == win then
        view = nil
        answers.stop()
      end
    end,
  })
  return win
end

--- Show an answer, in the window that is open or in a new one, and go there.
---@param answer cag.Answer
function M.open(answer)
  for group, link in pairs(M.GROUPS) do
    vim.api.nvim_set_hl(0, group, { link = link, default = true })
  end
  shown, drawn, help = answer, nil, false
  local it, current = open_view(), vim.api.nvim_get_current_win()
  if it and vim.api.nvim_win_get_tabpage(it.win) ~= vim.api.nvim_get_current_tabpage() then
    M.hide()
    it = nil
  end
  if not it then
    local buf = make_buffer()
    it = { buf = buf, win = make_window(buf), origin = current }
    view = it
  elseif current ~= it.win then
    it.origin = current
    vim.api.nvim_set_current_win(it.win)
  end
  if vim.fn.mode():find('^[iR]') then
    vim.cmd.stopinsert() -- an input that was shown in a window leaves us in Insert mode
  end
  M.draw(answer)
  to_end(it)
end

--- Close the window; whatever runs goes on.
function M.hide()
  local it = open_view()
  view = nil
  if it and not pcall(vim.api.nvim_win_close, it.win, true) then
    vim.wo[it.win][0].winfixbuf = false
    vim.cmd.enew() -- the last window stays
  end
end

--- Close the window, and stop what still runs.
function M.close()
  answers.stop()
  local it = open_view()
  M.hide()
  if it and vim.api.nvim_win_is_valid(it.origin) then
    vim.api.nvim_set_current_win(it.origin)
  end
end

vim.api.nvim_create_autocmd('VimResized', {
  group = vim.api.nvim_create_augroup('cag.window', { clear = true }),
  desc = "cag: the answer's window keeps its place",
  callback = function()
    if shown then
      M.draw(shown)
    end
  end,
})

return M
