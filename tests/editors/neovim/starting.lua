-- When the daemon is started, and when nothing is. Few of these wait for a model.

local t = require('harness')

local LEVELS = vim.log.levels

local PATH = vim.env.PATH

t.enable()

--- Whether a client comes within a moment that is long enough for one.
local function comes()
  return vim.wait(400, function()
    return #t.clients() > 0 or #require('cag.client').all() > 0
  end, 10)
end

--- No buffers, no clients, and no word of them.
local function calm()
  vim.cmd('silent! %bwipeout!')
  t.end_clients()
  t.notices = {}
  vim.env.PATH = PATH
end

local function folder(name)
  local path = ('%s/../%s'):format(t.project, name)
  vim.fn.mkdir(path, 'p')
  return vim.uv.fs_realpath(path)
end

local function put(path, words)
  vim.fn.mkdir(vim.fs.dirname(path), 'p')
  vim.fn.writefile(vim.split(words, '\n'), path)
end

--- Use other settings, as a user would.
local function configure(settings, more)
  if vim.lsp.config then
    vim.lsp.config('cag', vim.tbl_extend('force', { settings = { cag = settings } }, more or {}))
  else
    require('cag').setup(vim.tbl_extend('force', { settings = settings }, more or {}))
  end
end

t.case('nothing starts in a project without the document', function()
  local bare = folder('bare')
  put(bare .. '/notes.md', 'Hello.')
  vim.cmd.edit(bare .. '/notes.md')
  vim.cmd.enew()
  vim.cmd.edit(bare .. '/new.lua')
  vim.cmd.edit('term://true')
  t.yes(not comes())
  t.is(require('cag').status(), '')
  t.is(require('cag').status_data(), nil)
  t.is(t.notices, {})
end)

t.case('a question there is answered by one sentence: what was looked for, where, and what to do', function()
  local bare = folder('bare')
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
  local bare = folder('bare')
  vim.cmd.edit(bare .. '/deep/notes.md')
  vim.cmd.edit(bare .. '/document.txt')
  vim.api.nvim_buf_set_lines(0, 0, -1, false, { 'The cat sleeps in a copper kettle.' })
  t.yes(not comes())
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
  calm()
end)

t.case('a document that came from elsewhere is found by the next question', function()
  local late = folder('late')
  vim.cmd.cd(late)
  vim.cmd.edit(late .. '/notes.md')
  t.yes(not comes())
  put(late .. '/document.txt', 'The cat sleeps in a copper kettle.')
  vim.cmd('Cag ask Where does the cat sleep?')
  t.is(t.page()[1], 'Where does the cat sleep?')
  t.wait('the client', function()
    return t.clients()[1]
  end)
  t.type('q')
  t.is(t.last().state, 'stopped')
  calm()
end)

t.case('a buffer without a name asks in the working directory', function()
  vim.cmd.cd(folder('late'))
  vim.cmd.enew()
  t.yes(not comes())
  vim.cmd('Cag ask Where does the cat sleep?')
  t.is(
    t.wait('the client', function()
      return t.clients()[1]
    end).config.root_dir,
    folder('late')
  )
  t.is(t.last().document, nil)
  t.type('q')
end)

t.case('a file of no project uses the daemon that runs', function()
  local lone = folder('lone')
  vim.cmd.cd(lone)
  vim.cmd.edit(lone .. '/notes.md')
  vim.cmd('Cag ask Where does the cat sleep?')
  t.is(t.last().root, folder('late'))
  t.is(t.last().document, nil)
  t.is(#t.clients(), 1)
  t.type('q')
  calm()
end)

t.case('another name, in a folder of the project, is looked for', function()
  local books = folder('books')
  put(books .. '/docs/handbook.md', 'The cat sleeps in a copper kettle.')
  put(books .. '/src/deep/main.lua', '-- nothing')
  configure({ document = 'docs/handbook.md', maxNewTokens = 7 })
  vim.cmd.edit(books .. '/src/deep/main.lua')
  local client = t.wait('the client', function()
    return t.clients()[1]
  end)
  t.is(client.config.root_dir, books)
  t.wait('its status', function()
    local data = require('cag').status_data()
    return data and data.documents[1]
  end)
  t.is(require('cag').status_data().documents[1].uri, vim.uri_from_fname(books .. '/docs/handbook.md'))
  calm()
end)

t.case('settings go along from the start, and only those that are set', function()
  local sent
  configure({ document = 'docs/handbook.md', maxNewTokens = 7 }, {
    before_init = function(params)
      sent = params.initializationOptions
    end,
  })
  vim.cmd.edit(folder('books') .. '/src/deep/main.lua')
  local client = t.wait('the client', function()
    return t.clients()[1]
  end)
  if vim.lsp.config then -- on 0.10 `setup` has no such option, and says so
    t.is(sent, { document = 'docs/handbook.md', maxNewTokens = 7, showAnswers = false })
  end
  t.is(client.settings, { cag = { document = 'docs/handbook.md', maxNewTokens = 7 } })
  calm()
end)

t.case('an absolute document belongs to every file', function()
  put(folder('elsewhere') .. '/rules.txt', 'The cat sleeps in a copper kettle.')
  configure({ document = folder('elsewhere') .. '/rules.txt' }, { before_init = vim.lsp.config and function() end })
  vim.cmd.edit(folder('lone') .. '/notes.md')
  t.is(
    t.wait('the client', function()
      return t.clients()[1]
    end).config.root_dir,
    folder('elsewhere')
  )
  vim.cmd.edit(folder('bare') .. '/notes.md')
  t.pause(300)
  t.is(#t.clients(), 1)
  calm()
  configure({ document = folder('elsewhere') .. '/nothing.txt' })
  vim.cmd.edit(folder('lone') .. '/notes.md')
  t.yes(not comes())
  vim.cmd('Cag ask Anybody?')
  t.told(LEVELS.WARN, ('there is no %s/nothing.txt: create it'):format(folder('elsewhere')))
end)

t.case('the environment names the document before the settings do, as it does for the daemon', function()
  local server = require('cag.server')
  vim.env.CAG_DOCUMENT = 'of-the-environment.txt'
  t.is(server.document_name({ settings = { cag = { document = 'set.txt' } } }), 'of-the-environment.txt')
  t.is(server.document_name({ cmd = { 'cag-daemon', '--document', 'flag.txt' } }), 'flag.txt')
  t.is(server.document_name({ cmd = { 'cag-daemon', '--document=flag.txt' } }), 'flag.txt')
  t.is(server.document_name({ cmd_env = { CAG_DOCUMENT = 'given.txt' } }), 'given.txt')
  vim.env.CAG_DOCUMENT = nil
  t.is(server.document_name({ settings = { cag = { document = 'set.txt' } } }), 'set.txt')
  t.is(server.document_name({}), 'document.txt')
end)

t.case('a document in the home folder is not one of all the projects below', function()
  configure({ document = 'document.txt' })
  local home = vim.uv.os_homedir()
  put(home .. '/document.txt', 'The cat sleeps in a copper kettle.')
  vim.fn.mkdir(home .. '/project', 'p')
  vim.cmd.edit(home .. '/project/notes.md')
  t.yes(not comes())
  t.is({ require('cag.find').document('document.txt', home) }, { home, home .. '/document.txt' })
  vim.fn.delete(home .. '/document.txt')
end)

t.case('two projects have a daemon each, and a question goes to its own', function()
  vim.cmd.edit(folder('late') .. '/notes.md')
  vim.cmd.edit(t.project .. '/notes.md')
  t.wait('both', function()
    return #t.clients() == 2
  end)
  local root = {}
  for _, name in ipairs({ folder('late'), t.project }) do
    vim.cmd.edit(name .. '/notes.md')
    local running = require('cag.client').running(vim.api.nvim_get_current_buf())
    table.insert(root, running.config.root_dir)
  end
  t.is(root, { folder('late'), t.project })
  calm()
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
  t.yes(not comes())
  pcall(vim.cmd, 'Cag ask Anybody?')
  t.told(LEVELS.ERROR, 'cag-daemon was not found')
  t.is(t.answer_window(), nil)
  vim.env.PATH = PATH
end)

t.case('health says so, and why nothing runs here', function()
  calm()
  vim.env.PATH = '/usr/bin:/bin'
  local function report()
    vim.cmd('checkhealth cag')
    local lines = vim.api.nvim_buf_get_lines(0, 0, -1, false)
    vim.cmd('silent! %bwipeout!')
    return table.concat(lines, '\n')
  end
  vim.cmd.edit(folder('lone') .. '/notes.md')
  local words = report()
  t.has(words, 'ERROR cag-daemon was not found: it is in none of the 2 folders of $PATH')
  t.has(words, 'notes.md: there is no document.txt in ')
  t.has(words, 'so nothing starts here')
  t.edit('notes.md')
  t.has(report(), ('there is document.txt in %s, but no daemon runs; :Cag restart starts it'):format(t.project))
end)

t.case('a program of the user that is not there is named', function()
  calm()
  configure({}, { cmd = { '/nowhere/cag-daemon' } })
  t.edit('notes.md')
  t.told(LEVELS.ERROR, '/nowhere/cag-daemon was not found: there is no such file; correct cmd')
  calm()
end)

t.case('one in ~/.local/bin is found without PATH', function()
  vim.env.PATH = '/usr/bin:/bin'
  local file = vim.fs.normalize('~/.local/bin/cag-daemon')
  put(file, '#!/bin/sh\nexit 3')
  vim.uv.fs_chmod(file, 493)
  t.is(require('cag.find').program(), file)
  vim.fn.delete(file)
  t.is(require('cag.find').program(), nil)
  vim.env.PATH = PATH
end)
