-- What the cases are written with.

local M = {}

local PATIENCE_MS = 45000

---@type { name: string, run: fun() }[]
local cases = {}

--- Have the daemon started where there is a document: by what each version of Neovim has for that.
function M.enable()
  if vim.lsp.enable then
    vim.lsp.enable('cag')
  else
    require('cag').setup()
  end
end

--- All that was notified, in order.
---@type { message: string, level: integer }[]
M.notices = {}

local notify = vim.notify
---@diagnostic disable-next-line: duplicate-set-field
vim.notify = function(message, level, options)
  table.insert(M.notices, { message = message, level = level or vim.log.levels.INFO })
  return notify(message, level, options)
end

function M.case(name, run)
  table.insert(cases, { name = name, run = run })
end

--- Run all cases of a file, one after the other, then end the editor.
function M.run(file, results)
  local out = assert(io.open(results, 'w'))
  local function write(result)
    out:write(vim.json.encode(result), '\n')
    out:flush()
  end
  local loaded, problem = pcall(dofile, file)
  if not loaded then
    write({ case = '*', problem = tostring(problem) })
  end
  for _, each in ipairs(cases) do
    M.notices = {}
    local began = vim.uv.hrtime()
    local good, why = xpcall(each.run, debug.traceback)
    write({ case = each.name, problem = not good and tostring(why) or nil, seconds = (vim.uv.hrtime() - began) / 1e9 })
  end
  out:close()
  vim.cmd('qa!')
end

function M.is(found, expected, what)
  if not vim.deep_equal(found, expected) then
    error(('%s: %s, expected %s'):format(what or 'value', vim.inspect(found), vim.inspect(expected)), 2)
  end
end

function M.yes(found, what)
  if not found then
    error((what or 'it is not so') .. '\n' .. M.scene(), 2)
  end
  return found
end

function M.has(text, part)
  if type(text) == 'table' then
    text = table.concat(text, '\n')
  end
  if not text:find(part, 1, true) then
    error(('%q is not in: %s'):format(part, text), 2)
  end
end

function M.has_not(text, part)
  if type(text) == 'table' then
    text = table.concat(text, '\n')
  end
  if text:find(part, 1, true) then
    error(('%q is in: %s'):format(part, text), 2)
  end
end

--- Wait until something holds; give what it gave.
function M.wait(what, holds, milliseconds)
  local found
  local done = vim.wait(milliseconds or PATIENCE_MS, function()
    found = holds()
    return found and true or false
  end, 5)
  if not done then
    error(('waited in vain: %s\n%s'):format(what, M.scene()), 2)
  end
  return found
end

--- Let some time go by: for what must not happen.
function M.pause(milliseconds)
  vim.wait(milliseconds, function()
    return false
  end, 10)
end

--- What a user would see, for messages.
function M.scene()
  local parts = { 'notices: ' .. vim.inspect(M.notices) }
  for _, win in ipairs(vim.api.nvim_list_wins()) do
    local buf = vim.api.nvim_win_get_buf(win)
    local lines = vim.api.nvim_buf_get_lines(buf, 0, 40, false)
    table.insert(
      parts,
      ('window %d, %s:\n  %s'):format(win, vim.api.nvim_buf_get_name(buf), table.concat(lines, '\n  '))
    )
  end
  table.insert(parts, 'status: ' .. require('cag').status())
  return table.concat(parts, '\n')
end

--- The one sentence that was notified, and its level.
function M.told(level, part)
  M.wait('a notice with ' .. part, function()
    return #M.notices > 0
  end, 10000)
  M.is(#M.notices, 1, 'notices ' .. vim.inspect(M.notices))
  M.has(M.notices[1].message, part)
  M.is(M.notices[1].level, level, 'level of ' .. M.notices[1].message)
  M.notices = {}
end

--- Keys as they are typed, mappings included.
function M.type(keys)
  vim.api.nvim_feedkeys(vim.keycode(keys), 'mtx', false)
end

-- ── the plugin's window ──

function M.answer_buffer()
  local buf = vim.fn.bufnr('cag://answer')
  return buf > 0 and buf or nil
end

function M.answer_window()
  local buf = M.answer_buffer()
  for _, win in ipairs(buf and vim.api.nvim_list_wins() or {}) do
    if vim.api.nvim_win_get_buf(win) == buf then
      return win
    end
  end
end

--- The lines of the answer's window.
function M.page()
  local buf = M.answer_buffer()
  return buf and vim.api.nvim_buf_get_lines(buf, 0, -1, false) or {}
end

function M.page_text()
  return table.concat(M.page(), '\n')
end

function M.last()
  return require('cag.answers').last()
end

--- Ask, and wait for the whole answer.
function M.ask(question, command)
  vim.cmd((command or 'Cag ask ') .. question)
  return M.wait('the answer to ' .. question, function()
    local last = M.last()
    return last and last.question == question and last.state == 'done' and last
  end)
end

--- Words that a highlight group of the plugin is on.
function M.marked(group)
  local buf = M.answer_buffer()
  local found = {}
  for _, mark in ipairs(vim.api.nvim_buf_get_extmarks(buf, -1, 0, -1, { details = true })) do
    local row, col, details = mark[2], mark[3], mark[4]
    if details.hl_group == group then
      local lines = vim.api.nvim_buf_get_text(buf, row, col, details.end_row, details.end_col, {})
      table.insert(found, table.concat(lines, '\n'))
    end
  end
  return found
end

-- ── the project ──

M.project = vim.env.TEST_PROJECT

function M.read(name)
  local file = assert(io.open(M.project .. '/' .. name, 'rb'))
  local words = file:read('*a')
  file:close()
  return words
end

function M.write(name, words)
  local file = assert(io.open(M.project .. '/' .. name, 'wb'))
  file:write(words)
  file:close()
end

function M.edit(name)
  vim.cmd.edit(vim.fn.fnameescape(M.project .. '/' .. name))
end

function M.clients()
  return vim.lsp.get_clients({ name = 'cag' })
end

--- Send a notification: a client's methods were functions up to Neovim 0.10.
function M.notify(client, method, params)
  if vim.fn.has('nvim-0.11') == 1 then
    return client:notify(method, params)
  end
  return client.notify(method, params)
end

--- End all clients by force, which is quick, and wait until they are gone.
function M.end_clients()
  for _, each in ipairs(require('cag.client').all()) do
    if vim.fn.has('nvim-0.11') == 1 then
      each.client:stop(true)
    else
      each.client.stop(true)
    end
  end
  M.wait('the end of all clients', function()
    return #require('cag.client').all() == 0 and #M.clients() == 0
  end)
end

function M.state()
  local data = require('cag').status_data()
  return data and data.state
end

-- ── where the daemon is started ──

local PATH = vim.env.PATH

--- Whether a client comes within a moment that is long enough for one.
function M.comes()
  return vim.wait(400, function()
    return #M.clients() > 0 or #require('cag.client').all() > 0
  end, 10)
end

--- No buffers, no clients, and no word of them.
function M.calm()
  vim.cmd('silent! %bwipeout!')
  M.end_clients()
  M.notices = {}
  vim.env.PATH = PATH
end

--- A folder beside the project.
function M.folder(name)
  local path = ('%s/../%s'):format(M.project, name)
  vim.fn.mkdir(path, 'p')
  return vim.uv.fs_realpath(path)
end

--- Write a file, with its folder.
function M.put(path, words)
  vim.fn.mkdir(vim.fs.dirname(path), 'p')
  vim.fn.writefile(vim.split(words, '\n'), path)
end

--- Use other settings, as a user would.
function M.configure(settings, more)
  if vim.lsp.config then
    vim.lsp.config('cag', vim.tbl_extend('force', { settings = { cag = settings } }, more or {}))
  else
    require('cag').setup(vim.tbl_extend('force', { settings = settings }, more or {}))
  end
end

return M
