-- Which project a file belongs to, and which document a project has.

local t = require('harness')

local LEVELS = vim.log.levels

t.enable()

t.case('a file of no project uses the daemon that runs', function()
  local late = t.folder('late')
  t.put(late .. '/document.txt', 'The cat sleeps in a copper kettle.')
  vim.cmd.edit(late .. '/notes.md')
  t.wait('the client', function()
    return t.clients()[1]
  end)
  vim.cmd.cd(t.folder('lone'))
  vim.cmd.edit(t.folder('lone') .. '/notes.md')
  vim.cmd('Cag ask Where does the cat sleep?')
  t.is(t.last().root, late)
  t.is(t.last().document, nil)
  t.is(#t.clients(), 1)
  t.type('q')
  t.calm()
end)

t.case('another name, in a folder of the project, is looked for', function()
  local books = t.folder('books')
  t.put(books .. '/docs/handbook.md', 'The cat sleeps in a copper kettle.')
  t.put(books .. '/src/deep/main.lua', '-- nothing')
  t.configure({ document = 'docs/handbook.md', maxNewTokens = 7 })
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
  t.calm()
end)

t.case('an absolute document belongs to every file', function()
  t.put(t.folder('elsewhere') .. '/rules.txt', 'The cat sleeps in a copper kettle.')
  t.configure({ document = t.folder('elsewhere') .. '/rules.txt' }, { before_init = vim.lsp.config and function() end })
  vim.cmd.edit(t.folder('lone') .. '/notes.md')
  t.is(
    t.wait('the client', function()
      return t.clients()[1]
    end).config.root_dir,
    t.folder('elsewhere')
  )
  vim.cmd.edit(t.folder('bare') .. '/notes.md')
  t.pause(300)
  t.is(#t.clients(), 1)
  t.calm()
  t.configure({ document = t.folder('elsewhere') .. '/nothing.txt' })
  vim.cmd.edit(t.folder('lone') .. '/notes.md')
  t.yes(not t.comes())
  vim.cmd('Cag ask Anybody?')
  t.told(LEVELS.WARN, ('there is no %s/nothing.txt: create it'):format(t.folder('elsewhere')))
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
  t.configure({ document = 'document.txt' })
  local home = vim.uv.os_homedir()
  t.put(home .. '/document.txt', 'The cat sleeps in a copper kettle.')
  vim.fn.mkdir(home .. '/project', 'p')
  vim.cmd.edit(home .. '/project/notes.md')
  t.yes(not t.comes())
  t.is({ require('cag.find').document('document.txt', home) }, { home, home .. '/document.txt' })
  vim.fn.delete(home .. '/document.txt')
end)

t.case('two projects have a daemon each, and a question goes to its own', function()
  vim.cmd.edit(t.folder('late') .. '/notes.md')
  vim.cmd.edit(t.project .. '/notes.md')
  t.wait('both', function()
    return #t.clients() == 2
  end)
  local root = {}
  for _, name in ipairs({ t.folder('late'), t.project }) do
    vim.cmd.edit(name .. '/notes.md')
    local running = require('cag.client').running(vim.api.nvim_get_current_buf())
    table.insert(root, running.config.root_dir)
  end
  t.is(root, { t.folder('late'), t.project })
  t.calm()
end)
