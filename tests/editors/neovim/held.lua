-- An editor that is killed in mid-answer. Environment: TEST_MODEL, as for slow.lua.

local t = require('harness')

t.write('document.txt', 'The cat sleeps in a copper kettle.\n')
vim.g.cag = { settings = { model = vim.env.TEST_MODEL, dtype = 'float32', device = 'cpu', threads = 1 } }
t.enable()

t.case('an editor that is killed in mid-answer leaves nothing behind', function()
  t.edit('notes.md')
  vim.cmd('Cag ask Where does the cat sleep?')
  t.wait('first words', function()
    return t.last().state == 'streaming'
  end)
  vim.uv.kill(vim.uv.os_getpid(), 'sigkill')
end)
