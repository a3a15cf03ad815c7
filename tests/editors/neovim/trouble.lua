-- Daemons of another version, daemons that do not come up, and starting again.
-- fake.py, beside this file, is run by the Python that TEST_PYTHON names.

local t = require('harness')

local LEVELS = vim.log.levels
local STARTS = t.project .. '/../starts'

--- A daemon that says that of itself.
local function fake(experimental)
  local script = vim.fs.dirname(vim.env.TEST_CASES) .. '/fake.py'
  return { vim.env.TEST_PYTHON, script, vim.json.encode(experimental), STARTS }
end

local function starts()
  return vim.fn.filereadable(STARTS) == 1 and #vim.fn.readfile(STARTS) or 0
end

--- Have a program used from now on, and a file of the project opened.
local function use(cmd, settings)
  vim.cmd('silent! %bwipeout!')
  t.end_clients()
  t.pause(100)
  vim.fn.delete(STARTS)
  t.notices = {}
  require('cag').setup({ cmd = cmd, settings = settings })
  t.edit('notes.md')
end

local function gone()
  return #t.clients() == 0 and #require('cag.client').all() == 0
end

--- What is said, and that it is said once, and that the program is not started again by opening files.
local function is_let_go(words)
  t.told(LEVELS.ERROR, words)
  t.wait('the end', gone)
  t.edit('document.txt')
  t.edit('more.md')
  t.pause(300)
  t.is(t.notices, {})
  t.is(starts(), 1)
end

t.case('a daemon that speaks no version of the protocol is let go, with how to upgrade it', function()
  use(fake({ other = true }))
  is_let_go(
    ('%s 9.8.7 speaks no version of the protocol that is known here, this plugin speaks version 1; upgrade it with: '):format(
      vim.env.TEST_PYTHON
    )
  )
end)

t.case('a question starts it again all the same, and its page says why there is no answer', function()
  pcall(vim.cmd, 'Cag ask Anybody?')
  t.wait('the end', function()
    return t.last().state == 'failed'
  end)
  t.has(t.page_text(), 'speaks no version of the protocol')
  t.told(LEVELS.ERROR, 'speaks no version of the protocol')
  t.is(starts(), 2)
  t.type('q')
end)

t.case('an older daemon is told to be upgraded, with what it lacks', function()
  use(fake({ cag = { protocolVersion = 1, features = { 'ask', 'citations', 'partial', 'refresh', 'status' } } }))
  t.is(t.notices, {})
  vim.cmd('Cag restart') -- programs go by their name, and this one was given up
  is_let_go('9.8.7 is older than this plugin, and lacks locate, previous, selection, short, unload; upgrade it with: ')
end)

t.case('a newer daemon brings its own plugin', function()
  use(fake({ cag = { protocolVersion = 2, features = {} } }))
  vim.cmd('Cag restart')
  is_let_go('9.8.7 speaks version 2 of the protocol, this plugin speaks version 1; take the plugin that came with it')
end)

t.case('a program that ends at once is told of once, and not started again by opening files', function()
  use({ '/bin/false' })
  t.wait('a word about it', function()
    return #t.notices >= 2
  end)
  local ours = vim.tbl_filter(function(notice)
    return vim.startswith(notice.message, 'cag: ') -- the other one is Neovim's own
  end, t.notices)
  local message = 'cag: cag-daemon ended before it was ready (exit code 1); :Cag log shows why'
  t.is(ours, { { message = message, level = LEVELS.ERROR } })
  local count = #t.notices
  t.edit('document.txt')
  t.pause(300)
  t.is(#t.notices, count)
end)

t.case(':Cag restart starts what does not run', function()
  use(nil, { idleUnloadMinutes = 5 })
  t.wait('the client', function()
    return t.clients()[1]
  end)
  require('cag.client').stop(t.clients()[1])
  t.wait('the end', gone)
  t.edit('document.txt')
  vim.cmd('Cag restart')
  local client = t.wait('the client', function()
    return t.clients()[1]
  end)
  t.is(vim.tbl_keys(client.attached_buffers), { vim.api.nvim_get_current_buf() })
end)

t.case('and what runs is started again, with the settings as they are by then', function()
  local client = t.clients()[1]
  t.is(client.settings.cag, { idleUnloadMinutes = 5 })
  require('cag.config').set()
  vim.g.cag = { settings = { idleUnloadMinutes = 7 } }
  vim.cmd('Cag restart')
  local another = t.wait('another client', function()
    local now = t.clients()[1]
    return now and now.id ~= client.id and now
  end)
  t.is(another.settings.cag, { idleUnloadMinutes = 7 })
  t.is(vim.tbl_keys(another.attached_buffers), { vim.fn.bufnr(t.project .. '/document.txt') })
  t.is(#require('cag.client').all(), 1)
  t.wait('its status', function()
    return t.state()
  end)
  t.is(t.notices, {})
end)

t.case('a question that the daemon gives up ends with its sentence, as no error', function()
  vim.cmd('Cag ask Who donated the lathe?')
  t.wait('the request', function()
    return t.last().request_id
  end)
  t.notify(t.clients()[1], 'workspace/didChangeConfiguration', { settings = { cag = { document = 'other.txt' } } })
  t.wait('the end', function()
    return t.last().state == 'failed'
  end)
  t.told(LEVELS.INFO, 'cag: The settings changed before the answer was whole; ask again.')
  t.has(t.page_text(), 'The settings changed before the answer was whole; ask again.')
  t.is(t.last().problem.reason, 'settingsChanged')
  t.type('q')
end)

t.case('a document that is gone is told of in the words of the daemon', function()
  vim.cmd('Cag ask Who donated the lathe?')
  t.wait('the end', function()
    return t.last().state == 'failed'
  end)
  t.told(LEVELS.WARN, 'other.txt')
  t.is(t.last().problem.reason, 'documentNotFound')
  t.type('q')
end)
