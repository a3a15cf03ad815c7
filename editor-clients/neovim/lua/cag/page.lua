--- One answer in the words that are shown, so that the window only draws.

local config = require('cag.config')
local protocol = require('cag.protocol')
local text = require('cag.text')

local M = {}

--- What a stretch of the page looks like.
---@class cag.Mark
---@field row integer
---@field col integer
---@field end_row integer
---@field end_col integer
---@field group string

--- A stretch of the page that leads to a place in the document.
---@class cag.Spot
---@field row integer
---@field col integer
---@field end_row integer
---@field end_col integer
---@field citation cag.Citation

---@class cag.Page
---@field lines string[]
---@field marks cag.Mark[]
---@field spots cag.Spot[]
---@field answer_row integer Where the answer begins.
---@field places_row? integer Where the list of its places begins.
local Page = {}
Page.__index = Page

--- Add a text below what is there; all of it in one look.
---@param words string
---@param group? string
---@return integer row
function Page:add(words, group)
  local row = #self.lines
  local lines = vim.split(words, '\n')
  vim.list_extend(self.lines, lines)
  if group and words ~= '' then
    self:mark(group, row, 0, row + #lines - 1, #lines[#lines])
  end
  return row
end

--- An empty line, where there is none.
function Page:gap()
  if self.lines[#self.lines] ~= '' then
    self:add('')
  end
end

---@param group string
---@param row integer
---@param col integer
---@param end_row integer
---@param end_col integer
function Page:mark(group, row, col, end_row, end_col)
  table.insert(self.marks, { row = row, col = col, end_row = end_row, end_col = end_col, group = group })
end

---@param name string
---@return boolean
function M.is_stand_in(name)
  return name == protocol.EMBEDDED
end

--- A file as the user would name it: below its project, else below the working directory.
---@param uri string
---@param root? string
---@return string
function M.name_of(uri, root)
  local path = vim.fs.normalize(vim.uri_to_fname(uri))
  local prefix = root and vim.fs.normalize(root):gsub('/?$', '/') or '\n'
  return vim.startswith(path, prefix) and path:sub(#prefix + 1) or vim.fn.fnamemodify(path, ':~:.')
end

--- How to do something: by a key of the window, or by the command where the user wants no key for it.
---@param name string
---@return string
local function how(name)
  return config.get().keys[name] or ':Cag ' .. name
end

--- What the answer waits for.
---@param answer cag.Answer
---@param status? cag.Status
---@param document? cag.DocumentStatus
---@return string
local function waiting_for(answer, status, document)
  if not answer.request_id or not status then
    return 'starting cag-daemon'
  end
  if status.state == 'answering' then
    return status.queue > 0 and 'another question is being answered' or 'reading the question'
  end
  if vim.tbl_contains({ 'starting', 'loading', 'reading' }, status.state) then
    return status.short
  end
  if document and document.state == 'waiting' then
    return ('%s is to be read first'):format(M.name_of(document.uri, answer.root))
  end
  return 'asking'
end

--- Where a byte of the answer is on the page.
---@param page cag.Page
---@param answer string
---@param byte integer
---@return integer row, integer col
local function place(page, answer, byte)
  local before = answer:sub(1, byte)
  local _, breaks = before:gsub('\n', '')
  return page.answer_row + breaks, #before:match('[^\n]*$')
end

---@param page cag.Page
---@param answer cag.Answer
local function add_question(page, answer)
  page:add(answer.question, 'CagQuestion')
  local selection = answer.selection
  if selection then
    local first, last = selection.range.start.line + 1, selection.range['end'].line + 1
    local name = vim.startswith(selection.uri, 'file:') and M.name_of(selection.uri, answer.root) or 'a buffer'
    page:add(('about %s:%s'):format(name, first == last and first or ('%d–%d'):format(first, last)), 'CagNote')
  end
  page:gap()
end

--- The cited words in the answer, and the list of their places.
---@param page cag.Page
---@param answer cag.Answer
---@param result cag.AskResult
---@param width integer
local function add_citations(page, answer, result, width)
  local citations = result.citations
  if #citations == 0 then
    local name = M.name_of(result.document.uri, answer.root)
    page:gap()
    page:add(('not found word for word in %s'):format(name), 'CagWarning')
    return
  end
  for _, citation in ipairs(citations) do
    local from = text.byte(answer.text, citation.answerRange[1])
    local to = text.byte(answer.text, citation.answerRange[2])
    local row, col = place(page, answer.text, from)
    local end_row, end_col = place(page, answer.text, to)
    page:mark('CagCited', row, col, end_row, end_col)
    table.insert(page.spots, { row = row, col = col, end_row = end_row, end_col = end_col, citation = citation })
  end
  page:gap()
  page.places_row = #page.lines
  for _, citation in ipairs(citations) do
    local name = ('%s:%d'):format(M.name_of(citation.location.uri, answer.root), citation.location.range.start.line + 1)
    local words = text.squeezed(text.slice(answer.text, citation.answerRange[1], citation.answerRange[2]))
    local room = math.max(width - vim.fn.strdisplaywidth(name) - 5, 16)
    local line = ('%s  "%s"'):format(name, text.fit(words, room))
    local row = page:add(line, 'CagQuote')
    page:mark('CagPlace', row, 0, row, #name)
    table.insert(page.spots, { row = row, col = 0, end_row = row, end_col = #line + 1, citation = citation })
  end
end

--- What there is to say beside the answer itself.
---@param page cag.Page
---@param answer cag.Answer
local function add_notes(page, answer)
  local result = answer.result
  if answer.state == 'stopped' then
    page:gap()
    page:add(('stopped – %s asks again'):format(how('again')), 'CagNote')
  elseif answer.state == 'failed' and answer.problem then
    page:gap()
    page:add(answer.problem.message, answer.problem.level >= vim.log.levels.ERROR and 'CagError' or 'CagWarning')
  end
  if not result then
    return
  end
  page:gap()
  local name = M.name_of(result.document.uri, answer.root)
  if result.finishReason == 'length' then
    local cut = ('cut at %s tokens'):format(text.count(result.tokens.generated))
    local longer = require('cag.answers').longer_limit(answer)
    if longer then
      page:add(('%s – %s goes on, up to %s'):format(cut, how('longer'), text.count(longer)), 'CagWarning')
    elseif answer.max_new_tokens and result.tokens.generated < answer.max_new_tokens then
      page:add(('%s: %s leaves no room for more'):format(cut, name), 'CagWarning')
    else
      page:add(cut, 'CagWarning')
    end
  end
  if result.snapshot == 'previous' then
    page:add(('answered from an earlier version of %s'):format(name), 'CagWarning')
  elseif answer.changed then
    page:add(('%s has changed since – %s asks again'):format(name, how('again')), 'CagWarning')
  end
  if result.notice then
    page:add(result.notice, 'CagWarning')
  end
  local model = M.is_stand_in(result.model.name) and 'embedded model, a stand-in for a real Mistral'
    or result.model.name
  if result.model.quantization ~= 'none' then
    model = ('%s (%s)'):format(model, result.model.quantization)
  end
  local took = text.duration(result.milliseconds.total)
  page:add(table.concat({ model, 'version ' .. result.document.version:sub(1, 7), took }, ' · '), 'CagNote')
end

--- The keys of the window, as help.
---@type [string, string][]
M.HELP = {
  { 'jump', 'go to the words in the document, from a place or from cited words' },
  { 'close', 'close; an answer that is still running is stopped' },
  { 'stop', 'stop the answer' },
  { 'ask', 'ask something else' },
  { 'again', 'ask the same again' },
  { 'longer', 'go on where the answer was cut' },
  { 'previous', 'while the document is read: answer from the earlier version' },
  { 'earlier', 'the answer before this one' },
  { 'later', 'the answer after this one' },
  { 'citations', 'the places in the quickfix window' },
  { 'help', 'show these keys, or hide them' },
}

---@param page cag.Page
local function add_help(page)
  page:gap()
  for _, each in ipairs(M.HELP) do
    local key = config.get().keys[each[1]]
    if key then
      local row = page:add(('%-6s %s'):format(key, each[2]), 'CagNote')
      page:mark('CagKey', row, 0, row, #key)
    end
  end
end

--- The page of an answer.
---@param answer cag.Answer
---@param options { width: integer, status?: cag.Status, document?: cag.DocumentStatus, help?: boolean }
---@return cag.Page
function M.of(answer, options)
  local page = setmetatable({ lines = {}, marks = {}, spots = {}, answer_row = 0 }, Page)
  add_question(page, answer)
  page.answer_row = #page.lines
  if answer.text ~= '' or answer.state == 'done' then
    page:add(answer.text)
  end
  if answer.state == 'waiting' then
    page:add(waiting_for(answer, options.status, options.document) .. ' …', 'CagNote')
    if answer.offered then
      page:add(('%s answers at once, from the earlier version'):format(how('previous')), 'CagHint')
    end
  end
  if answer.result then
    add_citations(page, answer, answer.result, options.width)
  end
  add_notes(page, answer)
  if options.help then
    add_help(page)
  end
  if answer.state ~= 'streaming' and #page.lines > 1 and page.lines[#page.lines] == '' then
    table.remove(page.lines)
  end
  return page
end

return M
