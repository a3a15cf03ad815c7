-- luacheck's settings: Neovim's Lua is LuaJIT, and `vim` is its one global.
std = 'luajit'
cache = false
max_line_length = 120
globals = { 'vim.g', 'vim.b', 'vim.w', 'vim.o', 'vim.bo', 'vim.wo', 'vim.opt', 'vim.env', 'vim.ui', 'vim.notify' }
read_globals = { 'vim' }
