-- A Neovim that knows this plugin and nothing of the user's. It runs the cases of one file and writes down what
-- became of each: a line of JSON a case.
-- Environment: TEST_PLUGIN, the plugin's folder; TEST_CASES, the file; TEST_RESULTS, where to write.

vim.opt.runtimepath:prepend(vim.env.TEST_PLUGIN)
package.path = vim.fs.dirname(vim.env.TEST_CASES) .. '/?.lua;' .. package.path
vim.o.swapfile = false
vim.o.shadafile = 'NONE'
vim.o.more = false
vim.o.columns, vim.o.lines = 100, 30

local t = require('harness')

vim.api.nvim_create_autocmd('VimEnter', {
  callback = function()
    vim.schedule(function()
      t.run(vim.env.TEST_CASES, vim.env.TEST_RESULTS)
    end)
  end,
})
