-- Sourced by an editor with a configuration of its own, where init.lua has no part: runs the cases of one file.

package.path = vim.fs.dirname(vim.env.TEST_CASES) .. '/?.lua;' .. package.path
vim.o.swapfile = false
vim.schedule(function()
  require('harness').run(vim.env.TEST_CASES, vim.env.TEST_RESULTS)
end)
