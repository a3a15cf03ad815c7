-- What takes its time: waiting, stopping, an answer from the earlier version, the end in mid-answer.
-- Environment: TEST_MODEL, the folder of a model that is slow and never ends an answer by itself.

local t = require('harness')

local LEVELS = vim.log.levels
local SHORT = 'The cat sleeps in a copper kettle.\n'
local CAT = 'Where does the cat sleep?'

local slow = { model = vim.env.TEST_MODEL, dtype = 'float32', device = 'cpu', threads = 1, refresh = 'ask' }

t.write('document.txt', SHORT)
vim.g.cag = { settings = slow }
t.enable()

local function is_state(state)
  return function()
    return t.state() == state
  end
end

--- Ask, and wait for some words of the answer.
local function ask()
  vim.cmd('Cag ask ' .. CAT)
  return t.wait('first words', function()
    return t.last().state == 'streaming' and #t.last().text > 10 and t.last()
  end)
end

--- Wait until the daemon has nothing to do, and see that no more words come.
local function comes_to_rest(answer)
  t.wait('rest', is_state('ready'))
  local text = answer.text
  t.pause(200)
  t.is(answer.text, text)
  t.is(answer.state, 'stopped')
  t.is(answer.result, nil)
end

t.case('a daemon that is killed while a question is open: the page says so', function()
  t.edit('notes.md')
  vim.cmd('Cag ask ' .. CAT)
  local answer = t.last()
  t.wait('the loading', is_state('loading'))
  local pid = vim.fn.system({ 'pgrep', '-P', tostring(vim.uv.os_getpid()), '-f', 'cag_daemon' })
  vim.uv.kill(tonumber(vim.trim(pid)) --[[@as integer]], 'sigkill')
  t.wait('the end', function()
    return answer.state == 'failed'
  end)
  t.has(t.page_text(), 'cag-daemon has ended (signal 9); the next question starts it again')
  t.is(require('cag').status(), '')
  local ours = vim.tbl_filter(function(notice)
    return vim.startswith(notice.message, 'cag: ')
  end, t.notices)
  t.is(ours, {
    {
      message = 'cag: cag-daemon has ended (signal 9); the next question starts it again',
      level = LEVELS.WARN,
    },
  })
end)

t.case('the next question starts another, and while the model loads the page says so', function()
  local seen = {}
  t.type('r')
  t.wait('first words', function()
    local line = t.page()[3]
    if line ~= seen[#seen] then
      table.insert(seen, line)
    end
    return t.last().state == 'streaming'
  end)
  t.is(seen[1], 'starting cag-daemon …')
  t.has(seen, 'loading ')
  t.yes(table.concat(seen, '\n'):match('loading %d+ %% …'), vim.inspect(seen))
end)

t.case('the view follows what is written while the cursor is at the end, and only then', function()
  local answer = t.last()
  local function cursor()
    return vim.api.nvim_win_get_cursor(t.answer_window())
  end
  local before = #answer.text
  t.wait('more', function()
    return #answer.text > before + 20
  end)
  local last = vim.api.nvim_buf_line_count(0)
  t.is(cursor()[1], last)
  t.yes(cursor()[2] >= #t.page()[last] - 4, vim.inspect(cursor()))
  t.type('gg')
  before = #answer.text
  t.wait('more', function()
    return #answer.text > before + 20
  end)
  t.is(cursor()[1], 1)
  t.type('G0') -- in the last line, but not at its end
  before = #answer.text
  t.wait('more', function()
    return #answer.text > before + 20
  end)
  t.is(cursor()[2], 0)
  t.type('G$')
  before = #answer.text
  t.wait('more', function()
    return #answer.text > before + 20
  end)
  t.yes(cursor()[2] > 0, vim.inspect(cursor()))
end)

t.case('<C-c> stops; what is written stays', function()
  local answer = t.last()
  t.is(answer.state, 'streaming')
  t.type('<C-c>')
  t.is(answer.state, 'stopped')
  t.has(t.page_text(), answer.text)
  t.has(t.page_text(), 'stopped – r asks again')
  comes_to_rest(answer)
  t.is(t.notices, {})
end)

t.case('q closes, and stops', function()
  local answer = ask()
  t.type('q')
  t.is(t.answer_window(), nil)
  comes_to_rest(answer)
end)

t.case('closing the window by another way stops, too', function()
  local answer = ask()
  vim.cmd('close')
  comes_to_rest(answer)
end)

t.case(':Cag stop stops from another window; turning pages does not', function()
  local answer = ask()
  t.type('[[')
  t.is(answer.state, 'streaming')
  vim.cmd('wincmd p')
  t.is(vim.api.nvim_buf_get_name(0), t.project .. '/notes.md')
  vim.cmd('Cag stop')
  comes_to_rest(answer)
  vim.cmd('Cag stop')
  t.told(LEVELS.INFO, 'nothing is running')
  vim.api.nvim_set_current_win(t.answer_window())
  t.type('q')
end)

t.case('help while an answer is written does not get into it', function()
  local answer = ask()
  t.type('g?')
  local before = #answer.text
  t.wait('more', function()
    return #answer.text > before + 20
  end)
  local lines = t.page()
  t.is(table.concat(lines, '\n', 3, 2 + #vim.split(answer.text, '\n')), answer.text)
  t.has(lines, 'g?     show these keys')
  t.type('q')
  comes_to_rest(answer)
end)

t.case('a question that would wait long can be answered from the earlier version', function()
  t.edit('document.txt')
  local client = t.clients()[1]
  t.wait('the document to be shared', function()
    return client.attached_buffers[vim.api.nvim_get_current_buf()]
  end)
  local long = {}
  for number = 1, 600 do
    long[number] = ('Chapter %d. The lighthouse stands on a granite rock two miles north of the harbour.'):format(
      number
    )
  end
  vim.api.nvim_buf_set_lines(0, 0, 0, false, long)
  require('cag').ask(CAT, { max_new_tokens = 4 })
  t.wait('the offer', function()
    return t.page_text():find('p answers at once, from the earlier version', 1, true)
  end)
  t.wait('a word about the reading', function()
    return t.page()[3]:match('^reading %d[%d,]* of %d[%d,]* tokens')
  end)
  local answer = t.last()
  t.type('p')
  t.wait('the answer', function()
    return answer.state == 'done'
  end)
  t.is({ answer.previous, answer.result.snapshot, answer.result.tokens.generated }, { true, 'previous', 4 })
  t.is(answer.result.document.version, vim.fn.sha256(SHORT):sub(1, 12))
  t.has(t.page_text(), 'answered from an earlier version of document.txt')
  t.is(#vim.tbl_keys(client.requests), 0)
  t.is(t.notices, {})
end)

t.case(':Cag previous does the same', function()
  require('cag').ask(CAT, { max_new_tokens = 3 })
  t.wait('the reading', is_state('reading'))
  vim.cmd('Cag previous')
  t.wait('the answer', function()
    return t.last().state == 'done'
  end)
  t.is(t.last().result.snapshot, 'previous')
  t.type('q')
  vim.cmd('silent edit!')
end)

t.case(':qa! in mid-answer waits for nobody', function()
  ask()
  -- The end of this file is that; the driver sees how long it takes, and what is left.
end)
