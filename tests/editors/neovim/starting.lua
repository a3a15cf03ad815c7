-- When the daemon is started, and when nothing is. Few of these wait for a model.

local t = require('harness')

local LEVELS = vim.log.levels
local PATH = vim.env.PATH

t.enable()

t.case('nothing starts in a project without the document', function()
  local bare = t.folder('bare')
  t.put(bare .. '/notes.md', 'Hello.')
  vim.cmd.edit(bare .. '/notes.md')
  vim.cmd.enew()
  vim.cmd.edit(bare .. '/new.lua')
  vim.cmd.edit('term://true')
  t.yes(not t.comes())
  t.is(require('cag').status(), '')
  t.is(require('cag').status_data(), nil)
  t.is(t.notices, {})
end)

t.case('a question there is answered by one sentence: what was looked for, where, and what to do', function()
  local bare = t.folder('bare')
  vim.cmd.cd(bare)
  vim.cmd.edit(bare .. '/notes.md')
  vim.cmd('Cag ask Is anybody there?')
  t.told(
    LEVELS.WARN,
    ('cag: there is no document.txt in %s or above it: create it, or name another file in the setting document'):format(
      vim.fn.fnamemodify(bare, ':~')
    )
  )
  t.is(t.answer_window(), nil)
  t.is(#require('cag.answers').list, 0)
  vim.cmd('Cag refresh')
  t.told(LEVELS.WARN, 'there is no document.txt')
  vim.cmd('Cag status')
  t.told(LEVELS.INFO, 'cag-daemon is not running; a question starts it')
  vim.cmd('Cag unload')
  t.told(LEVELS.INFO, 'cag-daemon is not running')
  vim.cmd('Cag answer')
  t.told(LEVELS.INFO, 'nothing has been asked yet')
end)

t.case('a document that is written in the editor starts the daemon, which is told of it', function()
  local bare = t.folder('bare')
  vim.cmd.edit(bare .. '/deep/notes.md')
  vim.cmd.edit(bare .. '/document.txt')
  vim.api.nvim_buf_set_lines(0, 0, -1, false, { 'The cat sleeps in a copper kettle.' })
  t.yes(not t.comes())
  vim.cmd('silent write')
  local client = t.wait('the client', function()
    return t.clients()[1]
  end)
  t.is(client.config.root_dir, bare)
  t.is(vim.tbl_keys(client.attached_buffers), { vim.api.nvim_get_current_buf() })
  vim.cmd.edit(bare .. '/deep/other.md')
  vim.cmd.edit(bare .. '/document.txt')
  t.pause(300)
  t.is(#t.clients(), 1)
  t.calm()
end)

t.case('a document that came from elsewhere is found by the next question', function()
  local late = t.folder('late')
  vim.cmd.cd(late)
  vim.cmd.edit(late .. '/notes.md')
  t.yes(not t.comes())
  t.put(late .. '/document.txt', 'The cat sleeps in a copper kettle.')
  vim.cmd('Cag ask Where does the cat sleep?')
  t.is(t.page()[1], 'Where does the cat sleep?')
  t.wait('the client', function()
    return t.clients()[1]
  end)
  t.type('q')
  t.is(t.last().state, 'stopped')
  t.calm()
end)

t.case('a buffer without a name asks in the working directory', function()
  vim.cmd.cd(t.folder('late'))
  vim.cmd.enew()
  t.yes(not t.comes())
  vim.cmd('Cag ask Where does the cat sleep?')
  t.is(
    t.wait('the client', function()
      return t.clients()[1]
    end).config.root_dir,
    t.folder('late')
  )
  t.is(t.last().document, nil)
  t.type('q')
  t.calm()
end)

t.case('settings go along from the start, and only those that are set', function()
  local sent
  t.configure({ document = 'docs/handbook.md', maxNewTokens = 7 }, {
    before_init = function(params)
      sent = params.initializationOptions
    end,
  })
  t.put(t.folder('books') .. '/docs/handbook.md', 'The cat sleeps in a copper kettle.')
  vim.cmd.edit(t.folder('books') .. '/src/deep/main.lua')
  local client = t.wait('the client', function()
    return t.clients()[1]
  end)
  if vim.lsp.config then -- on 0.10 `setup` has no such option, and says so
    t.is(sent, { document = 'docs/handbook.md', maxNewTokens = 7, showAnswers = false })
  end
  t.is(client.settings, { cag = { document = 'docs/handbook.md', maxNewTokens = 7 } })
  t.calm()
end)

t.case('a program that is not there is told of once: where it was looked for, how to install it', function()
  vim.env.PATH = '/nowhere:/usr/bin:/bin'
  if vim.lsp.config then
    vim.lsp.config.cag = {}
  else
    require('cag').setup()
  end
  t.edit('notes.md')
  t.wait('the notice', function()
    return #t.notices > 0
  end)
  t.edit('document.txt')
  t.edit('another.md')
  t.pause(300)
  t.told(
    LEVELS.ERROR,
    'cag-daemon was not found: it is in none of the 3 folders of $PATH, nor in ~/.local/bin; install it with: '
  )
  t.yes(not t.comes())
  pcall(vim.cmd, 'Cag ask Anybody?')
  t.told(LEVELS.ERROR, 'cag-daemon was not found')
  t.is(t.answer_window(), nil)
  vim.env.PATH = PATH
end)

t.case('health says so, and why nothing runs here', function()
  t.calm()
  vim.env.PATH = '/usr/bin:/bin'
  local function report()
    vim.cmd('checkhealth cag')
    local lines = vim.api.nvim_buf_get_lines(0, 0, -1, false)
    vim.cmd('silent! %bwipeout!')
    return table.concat(lines, '\n')
  end
  vim.cmd.edit(t.folder('lone') .. '/notes.md')
  local words = report()
  t.has(words, 'ERROR cag-daemon was not found: it is in none of the 2 folders of $PATH')
  t.has(words, 'notes.md: there is no document.txt in ')
  t.has(words, 'so nothing starts here')
  t.edit('notes.md')
  t.has(report(), ('there is document.txt in %s, but no daemon runs; :Cag restart starts it'):format(t.project))
end)

t.case('a program of the user that is not there is named', function()
  t.calm()
  t.configure({}, { cmd = { '/nowhere/cag-daemon' } })
  t.edit('notes.md')
  t.told(LEVELS.ERROR, '/nowhere/cag-daemon was not found: there is no such file; correct cmd')
  t.calm()
end)

t.case('one in ~/.local/bin is found without PATH', function()
  vim.env.PATH = '/usr/bin:/bin'
  local file = vim.fs.normalize('~/.local/bin/cag-daemon')
  t.put(file, '#!/bin/sh\nexit 3')
  vim.uv.fs_chmod(file, 493)
  t.is(require('cag.find').program(), file)
  vim.fn.delete(file)
  t.is(require('cag.find').program(), nil)
  vim.env.PATH = PATH
end)
