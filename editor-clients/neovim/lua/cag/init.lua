--- Ask one document of your project. What is here is public; `:help cag` tells it at length.

local protocol = require('cag.protocol')

local M = {}

--- The reading that `refresh` has asked for.
---@type { client_id: integer, request_id: integer }?
local reading

local function answers()
  return require('cag.answers')
end

local function notice()
  return require('cag.notice')
end

--- The answer that a command is about: the one that is shown, else the last.
---@return cag.Answer?
local function meant()
  local answer = require('cag.window').shown() or answers().last()
  if not answer then
    notice().info('nothing has been asked yet')
  end
  return answer
end

--- Take options, and have the daemon started wherever there is a document.
---@param options? cag.Options
function M.setup(options)
  require('cag.config').set(options)
  require('cag.attach').enable()
  require('cag.client').push_settings()
end

--- Tell the daemon, with each key, what is typed at the prompt: it reads the question meanwhile. A prompt that a plugin
--- has put in place of Neovim's own is not heard.
---@param options cag.AskOptions
---@return fun() stop
local function tell_typing(options)
  local bufnr = vim.api.nvim_get_current_buf()
  local id = vim.api.nvim_create_autocmd('CmdlineChanged', {
    pattern = '@',
    callback = function()
      answers().typing(vim.fn.getcmdline(), options, bufnr)
    end,
  })
  return function()
    pcall(vim.api.nvim_del_autocmd, id)
  end
end

--- Ask a question and show its answer. Without one you are asked for it; in Visual mode it is about what is selected.
---@param question? string
---@param options? cag.AskOptions
function M.ask(question, options)
  options = options or {}
  local selection = require('cag.selection').visual()
  if selection then
    options = vim.tbl_extend('keep', options, { selection = selection })
    vim.api.nvim_feedkeys(vim.keycode('<Esc>'), 'nx', false)
  end
  if question and vim.trim(question) ~= '' then
    answers().ask(question, options)
    return
  end
  local prompt = options.selection and 'Ask about the selection: ' or 'Ask the document: '
  local stop = tell_typing(options)
  vim.ui.input({ prompt = prompt }, function(words)
    stop()
    if words and vim.trim(words) ~= '' then
      answers().ask(words, options)
    end
  end)
end

--- Stop the answer that is running, or else the reading that was asked for.
function M.stop()
  if answers().stop() then
    return
  end
  if reading then
    -- No callback will tell: Neovim keeps the reply to a cancelled request to itself.
    require('cag.client').cancel(reading.client_id, reading.request_id)
    reading = nil
    notice().info('the reading is stopped')
  else
    notice().info('nothing is running')
  end
end

--- Open the window with the answer that was shown last.
function M.answer()
  local answer = meant()
  if answer then
    require('cag.window').open(answer)
  end
end

--- Ask the same again.
function M.again()
  local answer = meant()
  if answer then
    answers().again(answer)
  end
end

--- Ask the same again for an answer of up to four times the length, where it was cut.
function M.longer()
  local answer = meant()
  local limit = answer and answers().longer_limit(answer)
  if limit then
    answers().again(answer --[[@as cag.Answer]], { max_new_tokens = limit })
  elseif answer then
    notice().info('this answer cannot go on')
  end
end

--- Have the running question answered at once, from the version of the document that is read already.
function M.previous()
  if not answers().from_previous() then
    notice().info('no question is waiting')
  end
end

--- List where an answer's words stand in the quickfix window.
function M.citations()
  local answer = meant()
  if not answer then
    return
  end
  if not answer.result then
    notice().info('this answer is not whole')
    return
  end
  require('cag.citations').to_quickfix(answer, function(count)
    if count == 0 then
      notice().info('these words do not stand in the document')
    else
      require('cag.window').hide()
      vim.cmd('botright copen')
    end
  end)
end

--- Copy what a bug report needs of an answer: never the document, never a folder.
function M.report()
  local answer = meant()
  if answer then
    local register = vim.fn.has('clipboard') == 1 and '+' or '"'
    vim.fn.setreg(register, require('cag.report').of(answer))
    notice().info(('the report is in register %s'):format(register))
  end
end

--- A request about the current buffer's project that has no window of its own.
---@param method string
---@param params table
---@param callback fun(result: any)
---@param on_sent? fun(client_id: integer, request_id: integer)
local function request(method, params, callback, on_sent)
  local client = require('cag.client')
  local asked, why, level = client.pick(vim.api.nvim_get_current_buf())
  if not asked then
    notice().failure(why --[[@as string]], level --[[@as integer]])
    return
  end
  client.when_ready(asked, function()
    local request_id = client.request(asked, method, params, function(problem, result)
      if problem then
        notice().failure(problem.message, problem.level)
      else
        callback(result)
      end
    end)
    if request_id and on_sent then
      on_sent(asked.id, request_id)
    end
  end)
end

--- Read the document now.
---@param options? { force?: boolean } force: keep nothing of what is read.
function M.refresh(options)
  local force = options and options.force or nil
  request(protocol.METHODS.refresh, { force = force }, function(result)
    local text = require('cag.text')
    local computed, took = text.count(result.tokens.computed), text.duration(result.milliseconds)
    reading = nil
    notice().info(
      result.tokens.computed == 0 and 'the document was read already' or ('%s tokens read in %s'):format(computed, took)
    )
  end, function(client_id, request_id)
    reading = { client_id = client_id, request_id = request_id }
  end)
end

--- Have the model leave memory now. The next question brings it back.
function M.unload()
  local client = require('cag.client')
  if not client.running(vim.api.nvim_get_current_buf()) then
    notice().info('cag-daemon is not running')
    return
  end
  request(protocol.METHODS.unload, {}, function()
    notice().info('the model has left memory; the next question brings it back')
  end)
end

--- End the daemon and start it again, with the options in force now; or just start it.
function M.restart()
  require('cag.client').restart(vim.api.nvim_get_current_buf(), function(client, why, level)
    if not client then
      notice().failure(why --[[@as string]], level or vim.log.levels.ERROR)
    end
  end)
end

--- The state in a few words, for a statusline; empty where no daemon is running.
---@param bufnr? integer Default: the current buffer.
---@return string
function M.status(bufnr)
  -- Asked at each redraw: nothing is loaded for it before there is something to show.
  local status = package.loaded['cag.client'] and require('cag.status')
  return status and status.text(bufnr) or ''
end

--- All that the daemon said last of its state; nil where none is running.
---@param bufnr? integer Default: the current buffer.
---@return cag.Status?
function M.status_data(bufnr)
  return require('cag.status').data(bufnr)
end

return M
