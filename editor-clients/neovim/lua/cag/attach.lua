--- When the daemon is started unasked: for files of a project that has the document, and for no other.

local client = require('cag.client')
local find = require('cag.find')
local notice = require('cag.notice')
local server = require('cag.server')

local M = {}

local modern = vim.fn.has('nvim-0.11') == 1

---@type boolean
local set_up = false

--- Whether the user wants the daemon started without being asked.
---@return boolean
function M.enabled()
  if not modern then
    return set_up
  end
  if vim.lsp.is_enabled then
    return vim.lsp.is_enabled(server.NAME)
  end
  return vim.tbl_get(vim.lsp, '_enabled_configs', server.NAME) ~= nil -- the first of Neovim 0.11
end

--- From now on the daemon is started without being asked.
function M.enable()
  set_up = true
  if modern then
    vim.lsp.enable(server.NAME)
  else
    vim.schedule(M.watch)
  end
end

--- Start the daemon if the buffer is a file of a project with the document; nothing happens in others.
---@param bufnr integer
function M.consider(bufnr)
  local path = M.enabled() and find.file(bufnr)
  if not path then
    return
  end
  local resolved = server.resolved()
  local root = find.document(server.document_name(resolved), vim.fs.dirname(path))
  if not root or client.is_given_up(resolved) then
    return
  end
  local _, why = client.start(root)
  if why then
    notice.once(why, vim.log.levels.ERROR)
  end
end

--- Have buffers looked at as they come: which belong to a document, and which has become one by being written.
function M.watch()
  vim.api.nvim_create_autocmd({ 'BufReadPost', 'BufNewFile', 'BufFilePost', 'BufWritePost' }, {
    group = vim.api.nvim_create_augroup('cag.attach', { clear = true }),
    desc = 'cag: start the daemon where there is a document',
    callback = function(event)
      vim.schedule(function()
        M.consider(event.buf)
      end)
    end,
  })
  for _, bufnr in ipairs(vim.api.nvim_list_bufs()) do
    if vim.api.nvim_buf_is_loaded(bufnr) then
      M.consider(bufnr)
    end
  end
end

return M
