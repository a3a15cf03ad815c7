--- Where things are: the program, and the document that a file belongs to.

local M = {}

local windows = vim.fn.has('win32') == 1

--- Where the program is, as it can be started: by its name where that is on PATH.
---@return string?
function M.program()
  if vim.fn.executable('cag-daemon') == 1 then
    return 'cag-daemon'
  end
  -- An editor that was not started from a shell often lacks this one.
  local file = vim.fs.normalize('~/.local/bin/cag-daemon' .. (windows and '.exe' or ''))
  return vim.fn.executable(file) == 1 and file or nil
end

--- The sentence for a program that is not there: what was looked for, where, and the next step.
---@param cmd string[]
---@return string
function M.missing(cmd)
  local name = cmd[1]
  local where
  if name:find('[/\\]') then
    where = vim.uv.fs_stat(name) and 'it may not be run' or 'there is no such file'
  else
    local folders = vim.split(vim.env.PATH or '', windows and ';' or ':', { trimempty = true })
    where = ('it is in none of the %d folders of $PATH, nor in ~/.local/bin'):format(#folders)
  end
  local next_step = name == 'cag-daemon' and 'install it with: ' .. M.install_command()
    or 'correct cmd, or leave it out to have cag-daemon looked for'
  return ('%s was not found: %s; %s'):format(name, where, next_step)
end

--- The command that installs the daemon, with what there is on this machine.
---@return string
function M.install_command()
  if vim.fn.executable('uv') == 1 then
    return 'uv tool install cag-daemon'
  end
  if vim.fn.executable('pipx') == 1 or windows then
    return 'pipx install cag-daemon'
  end
  -- Not `pip install --user`: many systems refuse it.
  local folder = '~/.local/share/cag-daemon/venv'
  return table.concat({
    'python3 -m venv ' .. folder,
    folder .. '/bin/pip install cag-daemon',
    'mkdir -p ~/.local/bin',
    ('ln -sf %s/bin/cag-daemon ~/.local/bin/'):format(folder),
  }, ' && ')
end

--- The command that brings an installed daemon up to date, by where it lies.
---@param program string
---@return string
function M.upgrade_command(program)
  local file = vim.fn.exepath(program)
  file = vim.fs.normalize(vim.uv.fs_realpath(file) or file)
  if file:find('/uv/tools/', 1, true) or file:find('/uv/data/tools/', 1, true) then
    return 'uv tool upgrade cag-daemon'
  end
  if file:find('/pipx/venvs/', 1, true) or file:find('/pipx/pipx/venvs/', 1, true) then
    return 'pipx upgrade cag-daemon'
  end
  local pip = vim.fs.dirname(file) .. '/pip'
  return (vim.fn.executable(pip) == 1 and pip or 'pip') .. ' install --upgrade cag-daemon'
end

--- Whether a path is one from the root, or from the home folder.
---@param path string
---@return boolean
function M.is_absolute(path)
  path = vim.fs.normalize(path)
  return path:sub(1, 1) == '/' or path:find('^%a:/') ~= nil
end

---@param path string
---@return boolean
local function is_file(path)
  local stat = vim.uv.fs_stat(path)
  return stat ~= nil and stat.type ~= 'directory'
end

--- The document that belongs to a folder: in it, or in the nearest folder above it.
---
--- The home folder and what is above it belong to no project: a document there counts for itself only.
---@param name string as in the setting `document`
---@param folder string
---@return string? root, string? path
function M.document(name, folder)
  name = vim.fs.normalize(name)
  if M.is_absolute(name) then
    if is_file(name) then
      return vim.fs.dirname(name), name
    end
    return
  end
  folder = vim.fs.normalize(folder)
  local home = vim.fs.normalize(vim.uv.os_homedir() or '~')
  local here = folder ---@type string?
  while here do
    local path = vim.fs.normalize(vim.fs.joinpath(here, name))
    if (here ~= home or here == folder) and is_file(path) then
      return here, path
    end
    local above = vim.fs.dirname(here)
    here = here ~= home and above ~= here and above or nil
  end
end

--- The file that a buffer shows; nil where it shows none.
---@param bufnr integer
---@return string? path
function M.file(bufnr)
  if not vim.api.nvim_buf_is_valid(bufnr) or vim.bo[bufnr].buftype ~= '' then
    return
  end
  local name = vim.api.nvim_buf_get_name(bufnr)
  if name == '' or name:find('^%a[%w+.-]+://') then
    return
  end
  return vim.fs.normalize(name)
end

--- Whether two paths are one file.
---@param one string
---@param other string
---@return boolean
function M.same(one, other)
  if one == other then
    return true
  end
  local real = vim.uv.fs_realpath(one)
  return real ~= nil and real == vim.uv.fs_realpath(other)
end

--- Whether a path is in a folder.
---@param path string
---@param folder string
---@return boolean
function M.inside(path, folder)
  path, folder = vim.fs.normalize(path), vim.fs.normalize(folder)
  return vim.startswith(path, folder:sub(-1) == '/' and folder or folder .. '/')
end

return M
