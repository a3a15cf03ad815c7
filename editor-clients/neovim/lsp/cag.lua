-- The configuration that `vim.lsp.enable('cag')` finds (Neovim 0.11 and newer).

return require('cag.server').config()
