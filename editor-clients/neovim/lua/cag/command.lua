--- The command `:Cag`, and its subcommands from a table.

local notice = require('cag.notice')

local M = {}

---@class cag.Subcommand
---@field desc string
---@field run fun(words: string, command: vim.api.keyset.create_user_command.command_args)
---@field words? boolean Whether it takes words.
---@field range? boolean Whether it takes a range.
---@field bang? boolean Whether it takes a bang.
---@field complete? fun(words: string): string[]

--- What the public function of that name does.
---@param name string
---@return fun()
local function public(name)
  return function()
    local act = require('cag')[name] --[[@as fun()]]
    act()
  end
end

--- Where there is a daemon, what it says; else why there is none.
local function show_status()
  local client, status = require('cag.client'), require('cag.status')
  local bufnr = vim.api.nvim_get_current_buf()
  local running = client.running(bufnr)
  if not running then
    notice.info('cag-daemon is not running; a question starts it')
    return
  end
  client.when_ready(running, function()
    client.request(running, require('cag.protocol').METHODS.status, {}, function(problem, result)
      if problem then
        notice.failure(problem.message, problem.level)
      else
        status.changed(running.id, result)
        vim.api.nvim_echo(status.chunks(result), true, {})
      end
    end)
  end)
end

local function open_log()
  local file = require('cag.health').log_file()
  vim.cmd.tabedit(vim.fn.fnameescape(file))
  vim.bo.autoread = true
  vim.cmd('normal! G')
end

---@type table<string, cag.Subcommand>
M.subcommands = {
  ask = {
    desc = 'ask the document; with a range, about those lines',
    words = true,
    range = true,
    run = function(words, command)
      local selection = command.range > 0 and require('cag.selection').of_range(command.line1, command.line2) or nil
      require('cag').ask(words, { selection = selection })
    end,
    complete = function(words)
      local questions = vim.tbl_map(function(answer)
        return answer.question
      end, require('cag.answers').list)
      return vim.tbl_filter(function(question)
        return vim.startswith(question, words) and not question:find('\n')
      end, questions)
    end,
  },
  stop = { desc = 'stop the answer', run = public('stop') },
  refresh = {
    desc = 'read the document now; with !, all of it anew',
    bang = true,
    run = function(_, command)
      require('cag').refresh({ force = command.bang })
    end,
  },
  status = { desc = 'what the daemon is doing', run = show_status },
  unload = { desc = 'have the model leave memory', run = public('unload') },
  restart = { desc = 'end the daemon and start it again', run = public('restart') },
  log = { desc = "open Neovim's log of language servers", run = open_log },
  answer = { desc = 'open the last answer again', run = public('answer') },
  again = { desc = 'ask the same again', run = public('again') },
  longer = { desc = 'go on where the answer was cut', run = public('longer') },
  previous = { desc = 'answer from the earlier version, without waiting', run = public('previous') },
  citations = { desc = 'list the cited places in the quickfix window', run = public('citations') },
  report = { desc = 'copy what a bug report needs', run = public('report') },
}

--- Run `:Cag`.
---@param command vim.api.keyset.create_user_command.command_args
function M.run(command)
  local name, words = command.args:match('^%s*(%S+)%s*(.-)%s*$')
  name, words = name or 'ask', words or ''
  local bang = command.bang
  if name:sub(-1) == '!' then
    name, bang = name:sub(1, -2), true
  end
  local subcommand = M.subcommands[name]
  if not subcommand then
    notice.error(('there is no :Cag %s; to ask: :Cag ask %s'):format(name, vim.trim(command.args)))
  elseif words ~= '' and not subcommand.words then
    notice.error((':Cag %s takes no words'):format(name))
  elseif bang and not subcommand.bang then
    notice.error((':Cag %s takes no !'):format(name))
  elseif command.range > 0 and not subcommand.range then
    notice.error((':Cag %s takes no range'):format(name))
  else
    command.bang = bang
    subcommand.run(words, command)
  end
end

--- Complete `:Cag`.
---@param _ string
---@param line string
---@param position integer
---@return string[]
function M.complete(_, line, position)
  local before = line:sub(1, position)
  local rest = before:match('^.-%f[%w]Cag!?%s+(.*)$') or ''
  local name, words = rest:match('^(%S+)%s+(.*)$')
  if not name or not words then
    local names = vim.tbl_filter(function(each)
      return vim.startswith(each, rest)
    end, vim.tbl_keys(M.subcommands))
    table.sort(names)
    return names
  end
  local subcommand = M.subcommands[name]
  if not subcommand or not subcommand.complete then
    return {}
  end
  -- What is put in stands for the last word alone.
  local typed = words:match('^(.*%s)%S*$') or ''
  return vim.tbl_map(function(each)
    return each:sub(#typed + 1)
  end, subcommand.complete(words))
end

return M
