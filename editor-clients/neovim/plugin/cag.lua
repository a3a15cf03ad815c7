-- What is there before anything is used: one command and four <Plug> maps. Everything else loads when it is used.

if vim.g.loaded_cag then
  return
end
vim.g.loaded_cag = true

if vim.fn.has('nvim-0.10') == 0 then
  vim.notify('cag: this plugin needs Neovim 0.10 or newer; upgrade Neovim.', vim.log.levels.ERROR)
  return
end

vim.api.nvim_create_user_command('Cag', function(command)
  require('cag.command').run(command)
end, {
  nargs = '*',
  bang = true,
  range = true,
  desc = 'Ask the document, and see to its daemon',
  complete = function(...)
    return require('cag.command').complete(...)
  end,
})

for name, map in pairs({
  ask = { modes = { 'n', 'x' }, desc = 'Ask the document (about the selection)' },
  stop = { modes = 'n', desc = 'Stop the answer' },
  refresh = { modes = 'n', desc = 'Read the document now' },
  answer = { modes = 'n', desc = 'Open the last answer again' },
}) do
  vim.keymap.set(map.modes, ('<Plug>(cag-%s)'):format(name), function()
    require('cag')[name]()
  end, { desc = map.desc })
end
