-- Installed as the help says, in an editor with a configuration of its own: the command, the daemon, the help.

local t = require('harness')

t.case('a file of the project starts the daemon, and :Cag and :help cag are there', function()
  t.edit('notes.txt')
  t.wait('the client', function()
    return t.clients()[1]
  end)
  t.is(vim.fn.exists(':Cag'), 2)
  vim.cmd('Cag ask Where does the cat sleep?')
  t.is({ t.page()[1], vim.bo.filetype }, { 'Where does the cat sleep?', 'markdown' })
  t.type('q')
  vim.cmd('help cag')
  t.is(vim.fs.basename(vim.api.nvim_buf_get_name(0)), 'cag.txt')
  vim.cmd('help :Cag-ask')
  t.has(vim.api.nvim_get_current_line(), '*:Cag-ask*')
  t.is(t.notices, {})
  t.is(require('cag.config').get().window.kind, 'float')
end)
