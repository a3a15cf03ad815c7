--- `:checkhealth cag`: what is installed, what runs, why nothing runs here, and what the log says.

local client = require('cag.client')
local find = require('cag.find')
local protocol = require('cag.protocol')
local server = require('cag.server')
local status = require('cag.status')

local M = {}

local VERSION_MS, DOCTOR_MS = 10000, 60000
local LOG_BYTES, LOG_LINES = 200000, 12

local health = vim.health

--- Where Neovim keeps its log of language servers.
---@return string
function M.log_file()
  return require('vim.lsp.log').get_filename()
end

--- Run a program; the editor goes on meanwhile, and does not wait for ever.
---@param cmd string[]
---@param milliseconds integer
---@param cwd? string
---@return { code: integer, stdout: string, stderr: string }
local function run(cmd, milliseconds, cwd)
  local ok, result = pcall(function()
    return vim.system(cmd, { text = true, timeout = milliseconds, cwd = cwd }):wait()
  end)
  if not ok then
    return { code = -1, stdout = '', stderr = tostring(result) }
  end
  return { code = result.code, stdout = result.stdout or '', stderr = result.stderr or '' }
end

local function check_plugin()
  health.start('cag: the plugin')
  local version = require('cag.report').neovim()
  if vim.fn.has('nvim-0.10') == 1 then
    health.ok('Neovim ' .. version)
  else
    health.error(('Neovim %s: 0.10 or newer is needed'):format(version))
  end
  local file = vim.api.nvim_get_runtime_file('lua/cag/health.lua', false)[1]
  local folder = vim.fs.dirname(vim.fs.dirname(vim.fs.dirname(file)))
  health.ok(('plugin %s, protocol %d, in %s'):format(protocol.PLUGIN_VERSION, protocol.PROTOCOL_VERSION, folder))
  if vim.g.loaded_cag == nil then
    health.warn('plugin/cag.lua was not sourced, so there is no :Cag')
  end
end

--- The user's settings as flags of `doctor`, which looks without an editor.
---@param resolved vim.lsp.Config
---@return string[]
local function flags_of(resolved)
  local flags = {}
  for _, key in ipairs({ 'document', 'model', 'device', 'dtype', 'threads' }) do
    local value = vim.tbl_get(resolved, 'settings', 'cag', key)
    if value ~= nil then
      vim.list_extend(flags, { '--' .. key, tostring(value) })
    end
  end
  return flags
end

---@param resolved vim.lsp.Config
---@param root? string
local function check_program(resolved, root)
  health.start('cag: the program')
  local cmd = resolved.cmd
  if type(cmd) ~= 'table' then
    return health.info('cmd is a function of yours: which program it starts is not known here')
  end
  local program = vim.fn.exepath(cmd[1])
  if program == '' then
    return health.error(find.missing(cmd))
  end
  local version = run({ program, '--version' }, VERSION_MS)
  if version.code ~= 0 then
    return health.error(
      ('%s --version failed (%s)'):format(program, vim.trim(version.stderr ~= '' and version.stderr or 'no word')),
      { 'Install it anew: ' .. find.install_command() }
    )
  end
  health.ok(('%s, %s'):format(program, vim.trim(version.stdout)))
  local doctor = run(vim.list_extend({ program, 'doctor', '--json' }, flags_of(resolved)), DOCTOR_MS, root)
  local ok, report = pcall(vim.json.decode, doctor.stdout)
  if not ok or type(report) ~= 'table' or type(report.findings) ~= 'table' then
    local why = doctor.code == 124 and ('no answer within %d s'):format(DOCTOR_MS / 1000) or vim.trim(doctor.stderr)
    return health.warn(('cag-daemon doctor failed: %s'):format(why))
  end
  local say = { ok = health.ok, note = health.warn, problem = health.error }
  for _, finding in ipairs(report.findings) do
    (say[finding.verdict] or health.info)(('%s: %s'):format(finding.what, finding.found))
  end
end

---@param each { client: vim.lsp.Client, record: cag.Record }
local function check_client(each)
  local now = status.of(each.client.id)
  local info = each.record.server or {}
  local what = ('client %d in %s'):format(each.client.id, each.record.root)
  if not each.record.experimental then
    return health.info(what .. ': starting')
  end
  health.ok(
    ('%s: cag-daemon %s, protocol %s'):format(
      what,
      info.version or '(unknown)',
      each.record.experimental.protocolVersion
    )
  )
  if now then
    (now.state == 'failed' and health.error or health.ok)(('%s: %s'):format(now.state, now.message))
  end
  local names = {}
  for bufnr in pairs(each.client.attached_buffers) do
    names[#names + 1] = vim.fn.fnamemodify(vim.api.nvim_buf_get_name(bufnr), ':~:.')
  end
  health.info(
    #names > 0 and 'shared with it, unsaved changes included: ' .. table.concat(names, ', ')
      or 'no buffer is shared with it: the document is not open, so what is on disk counts'
  )
end

---@param resolved vim.lsp.Config
---@param bufnr integer The buffer that the user came from.
---@param root? string
local function check_here(resolved, bufnr, root)
  health.start('cag: here')
  local all = client.all()
  for _, each in ipairs(all) do
    check_client(each)
  end
  local name = server.document_name(resolved)
  local path = find.file(bufnr)
  local what = path and vim.fn.fnamemodify(path, ':~:.') or 'this buffer'
  if root then
    if client.at(root) then
      return health.ok(('%s: its document is %s in %s'):format(what, name, root))
    end
    if not require('cag.attach').enabled() then
      return health.warn(
        ('%s: there is %s in %s, but nothing starts unasked'):format(what, name, root),
        { "Call vim.lsp.enable('cag'), or require('cag').setup() on Neovim 0.10." }
      )
    end
    return health.warn(('%s: there is %s in %s, but no daemon runs; :Cag restart starts it'):format(what, name, root))
  end
  local where = path and vim.fn.fnamemodify(vim.fs.dirname(path), ':~') or vim.fn.fnamemodify(vim.fn.getcwd(), ':~')
  health.info(('%s: there is no %s in %s or above it, so nothing starts here'):format(what, name, where))
end

local function check_log()
  health.start('cag: the end of the log')
  local file = M.log_file()
  local handle = io.open(file, 'r')
  if not handle then
    return health.info(('there is no log yet (%s)'):format(file))
  end
  handle:seek('set', math.max(0, (handle:seek('end', 0) or 0) - LOG_BYTES))
  local ours = vim.tbl_filter(function(line)
    return line:find('cag', 1, true) ~= nil
  end, vim.split(handle:read('*a') or '', '\n', { trimempty = true }))
  handle:close()
  if #ours == 0 then
    return health.info(('nothing of ours in %s'):format(file))
  end
  local tail = vim.list_slice(ours, math.max(1, #ours - LOG_LINES + 1) --[[@as integer]])
  for index, line in ipairs(tail) do
    tail[index] = #line > 300 and line:sub(1, 300) .. '…' or line
  end
  health.info(('%s\n%s'):format(file, table.concat(tail, '\n')))
end

--- The buffer that the user came from: this one is the report.
---@return integer
local function buffer_before()
  local before = vim.fn.bufnr('#')
  return before > 0 and before or vim.api.nvim_get_current_buf()
end

function M.check()
  local resolved = server.resolved()
  local bufnr = buffer_before()
  local path = find.file(bufnr)
  local root = find.document(server.document_name(resolved), path and vim.fs.dirname(path) or vim.fn.getcwd())
  check_plugin()
  check_program(resolved, root)
  check_here(resolved, bufnr, root)
  check_log()
end

return M
