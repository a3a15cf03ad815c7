-- The everyday: ask, read, follow a citation, edit, ask again. One daemon with the embedded model.

local t = require('harness')

local LEVELS = vim.log.levels
local LATHE = 'Who donated the lathe?'
local BRANDT = 'The lathe was donated by a retired clockmaker named Anselm Brandt.'
local MONEY = 'How much does membership cost?'

t.case('before anything is used there is one command, and no key is mapped', function()
  t.is(vim.fn.exists(':Cag'), 2)
  t.is(package.loaded['cag'], nil)
  for _, mode in ipairs({ 'n', 'x', 'i', 'o', 't' }) do
    for _, map in ipairs(vim.api.nvim_get_keymap(mode)) do
      t.yes(vim.startswith(map.lhs, '<Plug>(cag-') or not (map.desc or ''):find('[Cc]ag'), vim.inspect(map))
    end
  end
  for _, name in ipairs({ 'ask', 'stop', 'refresh', 'answer' }) do
    t.yes(vim.fn.maparg(('<Plug>(cag-%s)'):format(name), 'n') ~= '', name)
  end
  t.yes(vim.fn.maparg('<Plug>(cag-ask)', 'x') ~= '')
  t.is(require('cag').status(), '')
end)

t.case('a file of a project with the document starts the daemon, which is told of no other file', function()
  vim.api.nvim_create_autocmd('User', {
    pattern = 'CagStatus',
    callback = function(event)
      _G.status_events = (_G.status_events or 0) + 1
      _G.last_status = event.data.status
    end,
  })
  t.enable()
  t.edit('notes.md')
  local client = t.wait('the client', function()
    return t.clients()[1]
  end)
  t.is(client.config.root_dir, t.project)
  t.is(vim.tbl_keys(client.attached_buffers), {})
end)

t.case('a question asked while the daemon starts waits in its window, and says for what', function()
  vim.cmd('Cag ask ' .. LATHE)
  local win = t.answer_window()
  t.is(vim.api.nvim_get_current_win(), win)
  t.is(vim.bo.filetype, 'markdown')
  t.is(vim.bo.modifiable, false)
  t.is(t.page()[1], LATHE)
  t.wait('a word about the loading', function()
    return t.page_text():find('loading %d+ %%')
  end)
  t.is(vim.api.nvim_win_get_config(win).relative, 'editor')
end)

t.case('the answer comes as it is written', function()
  -- Every change of the page is looked at: two pieces may well come between two looks at it.
  local grown = {}
  vim.api.nvim_buf_attach(vim.api.nvim_win_get_buf(t.answer_window()), false, {
    on_lines = function()
      local last = t.last()
      local line = t.page()[3] or ''
      if last.state == 'streaming' and line ~= grown[#grown] then
        t.is(last.result, nil)
        table.insert(grown, line)
      end
      return last.state == 'done'
    end,
  })
  t.wait('the whole answer', function()
    return t.last().state == 'done'
  end)
  t.yes(#grown >= 2, vim.inspect(grown))
  t.yes(#grown[1] < #BRANDT, vim.inspect(grown))
  for index = 2, #grown do
    t.yes(vim.startswith(grown[index], grown[index - 1]), vim.inspect(grown))
  end
  t.yes(vim.startswith(BRANDT, grown[#grown]), vim.inspect(grown))
end)

t.case('the page has question, answer, its place, model, version and time', function()
  local page = t.page()
  t.is({ page[1], page[2], page[3], page[4] }, { LATHE, '', BRANDT, '' })
  t.has(page[5], 'document.txt:11  "The lathe was donated by')
  local version = vim.fn.sha256(t.read('document.txt')):sub(1, 7)
  t.yes(
    page[7]:match('^embedded model, a stand%-in for a real Mistral · version ' .. version .. ' · %d+%.?%d* s$'),
    page[7]
  )
  t.is(#page, 7)
  t.is(t.marked('CagCited'), { BRANDT })
  t.is(t.marked('CagPlace'), { 'document.txt:11' })
  t.is(t.marked('CagQuestion'), { LATHE })
  t.is(t.notices, {})
end)

t.case('a float is as high as what it shows', function()
  local win = t.answer_window()
  t.is(vim.api.nvim_win_get_height(win), vim.api.nvim_win_text_height(win, {}).all)
end)

t.case('the cursor waits on the place; <CR> leads to the words, which are lit for a moment', function()
  t.is(vim.api.nvim_win_get_cursor(0), { 5, 0 })
  t.type('<CR>')
  t.is(vim.api.nvim_buf_get_name(0), t.project .. '/document.txt')
  t.is(t.answer_window(), nil)
  t.is(vim.api.nvim_win_get_cursor(0), { 11, 142 })
  local space = vim.api.nvim_get_namespaces()['cag.cited']
  local lit = vim.api.nvim_buf_get_extmarks(0, space, 0, -1, { details = true })[1]
  t.is({ lit[2], lit[3], lit[4].end_row, lit[4].end_col }, { 10, 142, 10, 142 + #BRANDT })
  t.is(lit[4].hl_group, 'CagFlash')
  t.wait('the light to go out', function()
    return #vim.api.nvim_buf_get_extmarks(0, space, 0, -1, {}) == 0
  end, 3000)
  t.type('<C-o>')
  t.is(vim.api.nvim_buf_get_name(0), t.project .. '/notes.md')
end)

t.case('the answer can be opened again, and its words lead to the document, too', function()
  vim.cmd('Cag answer')
  t.is(vim.api.nvim_get_current_win(), t.answer_window())
  t.is(t.page()[3], BRANDT)
  vim.api.nvim_win_set_cursor(0, { 1, 0 })
  t.type('<CR>') -- the question leads nowhere
  t.is(vim.api.nvim_get_current_win(), t.answer_window())
  vim.api.nvim_win_set_cursor(0, { 3, 20 })
  t.type('<CR>')
  t.is(vim.api.nvim_buf_get_name(0), t.project .. '/document.txt')
  t.is(vim.api.nvim_win_get_cursor(0), { 11, 142 })
  t.type('<C-o>')
end)

t.case('q closes, and leads back to where the question came from', function()
  local before = vim.api.nvim_get_current_win()
  vim.cmd('Cag answer')
  t.type('q')
  t.is(t.answer_window(), nil)
  t.is(vim.api.nvim_get_current_win(), before)
end)

t.case('a second answer; [[ and ]] turn the pages, and the title counts', function()
  t.ask(MONEY)
  local win = t.answer_window()
  local function title()
    return vim.api.nvim_win_get_config(win).title[1][1]
  end
  t.is(title(), ' Cag · 2 of 2 ')
  t.type('[[')
  t.is({ title(), t.page()[1], t.page()[3] }, { ' Cag · 1 of 2 ', LATHE, BRANDT })
  t.type('[[')
  t.is(t.page()[1], LATHE)
  t.type(']]')
  t.is({ title(), t.page()[1] }, { ' Cag · 2 of 2 ', MONEY })
  t.type('q')
end)

t.case('unsaved changes of the document count, and an earlier answer is marked', function()
  t.edit('document.txt')
  local client = t.clients()[1]
  t.wait('the document to be shared', function()
    return client.attached_buffers[vim.api.nvim_get_current_buf()]
  end)
  vim.cmd([[%s/thirty-two euros/forty euros/]])
  t.is(vim.bo.modified, true)
  local answer = t.ask(MONEY)
  t.has(answer.text, 'forty euros')
  t.is(answer.result.snapshot, 'current')
  t.has_not(t.page_text(), 'has changed since')
  t.type('[[')
  t.wait('the mark', function()
    return t.page_text():find('document.txt has changed since – r asks again', 1, true)
  end)
  t.has(t.page_text(), 'thirty-two euros')
end)

t.case('a place that has moved is found where it stands now', function()
  local document = vim.fn.bufnr(t.project .. '/document.txt')
  vim.api.nvim_buf_set_lines(document, 0, 0, false, { 'New first line 🙂.', 'And a second one.' })
  t.type('[[') -- the answer about the lathe
  t.is(t.page()[1], LATHE)
  vim.api.nvim_win_set_cursor(0, { 3, 0 })
  t.type('<CR>')
  t.wait('the document', function()
    return vim.api.nvim_get_current_buf() == document
  end)
  t.is(vim.api.nvim_win_get_cursor(0), { 13, 142 })
  t.is(t.notices, {})
end)

t.case('the quickfix list has the places as they are now', function()
  vim.cmd('Cag citations')
  t.wait('the list', function()
    return vim.bo.buftype == 'quickfix'
  end)
  local list = vim.fn.getqflist({ items = 0, title = 0 })
  t.is(list.title, LATHE)
  t.is(#list.items, 1)
  local item = list.items[1]
  t.is({ item.lnum, item.col, item.end_lnum, item.text }, { 13, 143, 13, BRANDT })
  vim.cmd.cclose()
end)

t.case('words that are only partly there are shown as far as they go', function()
  vim.cmd([[%s/a retired clockmaker named/a blacksmith named/]])
  vim.cmd('Cag answer')
  vim.api.nvim_win_set_cursor(0, { 3, 0 })
  t.type('<CR>')
  t.told(LEVELS.INFO, 'only these of the cited words are still in document.txt')
  t.is(vim.api.nvim_win_get_cursor(0), { 13, 142 })
end)

t.case('words that are gone are said to be gone', function()
  vim.cmd([[%s/The lathe was donated by .\{-}\. //]])
  vim.cmd('Cag answer')
  vim.api.nvim_win_set_cursor(0, { 3, 0 })
  t.type('<CR>')
  t.told(LEVELS.INFO, 'these words are no longer in document.txt')
  t.is(vim.api.nvim_get_current_win(), t.answer_window())
  vim.cmd('Cag citations')
  t.told(LEVELS.INFO, 'these words do not stand in the document')
  t.type('q')
  t.is(vim.api.nvim_buf_get_name(0), t.project .. '/document.txt')
end)

t.case('when the text is what it was, the mark goes', function()
  vim.cmd('edit!')
  vim.cmd('Cag answer')
  t.wait('the mark to go', function()
    return not t.page_text():find('has changed since', 1, true)
  end)
  t.type('q')
end)

t.case('a question while an answer is running stops that; no streams are mixed', function()
  vim.cmd('Cag ask ' .. MONEY)
  local first = t.wait('first words', function()
    return t.last().state == 'streaming' and t.last()
  end)
  t.yes(not first.result)
  t.ask(LATHE)
  t.is({ first.state, first.result }, { 'stopped' })
  t.is({ t.page()[1], t.page()[3] }, { LATHE, BRANDT })
  t.type('[[')
  t.is(t.page()[1], MONEY)
  t.has(t.page_text(), 'stopped – r asks again')
  t.has_not(t.page_text(), 'lathe')
  t.type(']]q')
  t.is(t.notices, {})
end)

t.case('pieces are put in order; those of another question are left alone', function()
  local answers = require('cag.answers')
  local answer = { id = 'ours', state = 'waiting', text = '', seq = 0, early = {} }
  table.insert(answers.list, answer)
  for _, piece in ipairs({ { 'ours', 1, 'b' }, { 'other', 0, 'x' }, { 'ours', 0, 'a' }, { 'ours', 2, 'c' } }) do
    answers.partial({ id = piece[1], seq = piece[2], text = piece[3] })
  end
  t.is({ answer.text, answer.seq, answer.state }, { 'abc', 3, 'streaming' })
  answer.state = 'stopped'
  answers.partial({ id = 'ours', seq = 3, text = 'd' })
  t.is(answer.text, 'abc')
  table.remove(answers.list)
end)

t.case('r asks the same again', function()
  vim.cmd('Cag answer')
  local count = #require('cag.answers').list
  t.type('r')
  t.wait('the answer', function()
    return #require('cag.answers').list == count + 1 and t.last().state == 'done'
  end)
  t.is({ t.last().question, t.last().text }, { LATHE, BRANDT })
end)

t.case('a cut answer says so, and + goes on', function()
  require('cag').ask(LATHE, { max_new_tokens = 3 })
  t.wait('the cut answer', function()
    return t.last().state == 'done'
  end)
  t.is(t.last().result.finishReason, 'length')
  t.has(t.page_text(), 'cut at 3 tokens – + goes on, up to 12')
  t.has(t.page_text(), 'not found word for word in document.txt')
  t.type('+')
  t.wait('a longer one', function()
    return t.last().max_new_tokens == 12 and t.last().state == 'done'
  end)
  t.has(t.page_text(), 'cut at 12 tokens – + goes on, up to 48')
  vim.cmd('Cag longer')
  t.wait('the whole', function()
    return t.last().max_new_tokens == 48 and t.last().state == 'done'
  end)
  t.is({ t.last().text, t.last().result.finishReason }, { BRANDT, 'stop' })
  vim.cmd('Cag longer')
  t.told(LEVELS.INFO, 'this answer cannot go on')
end)

t.case('where the document leaves no room, that is said', function()
  local answers, page = require('cag.answers'), require('cag.page')
  local answer = vim.deepcopy(t.last())
  answer.max_new_tokens = 64
  answer.result.finishReason = 'length'
  answer.result.tokens.generated = 40
  t.is(answers.longer_limit(answer), nil)
  t.has(page.of(answer, { width = 80 }).lines, 'cut at 40 tokens: document.txt leaves no room for more')
  answer.max_new_tokens, answer.result.tokens.generated = 4096, 4096
  t.is(answers.longer_limit(answer), nil)
  t.has(page.of(answer, { width = 80 }).lines, 'cut at 4,096 tokens')
  answer.max_new_tokens, answer.result.tokens.generated = nil, 256
  t.is(answers.longer_limit(answer), 1024)
  answer.result.tokens.generated = 2000
  t.is(answers.longer_limit(answer), 4096)
end)

t.case('an answer from an earlier version says so, and from which model', function()
  local answer = vim.deepcopy(t.last())
  answer.result.snapshot = 'previous'
  answer.result.model = { name = 'Ministral 3B', quantization = 'int8' }
  answer.result.milliseconds.total = 83000
  local lines = require('cag.page').of(answer, { width = 80 }).lines
  t.has(lines, 'answered from an earlier version of document.txt')
  t.has(lines, 'Ministral 3B (int8) · version ')
  t.has(lines, ' · 1 min 23 s')
  t.is(table.concat(lines, '\n'):find('good for', 1, true), nil)
  answer.result.notice = 'The document has 2,900 tokens, and the embedded model is good for about 1,000'
  t.has(require('cag.page').of(answer, { width = 80 }).lines, answer.result.notice)
end)

t.case('g? shows the keys, and hides them', function()
  vim.cmd('Cag answer')
  t.type('g?')
  t.has(t.page_text(), '<CR>   go to the words in the document')
  t.has(t.page_text(), 'g?     show these keys, or hide them')
  t.type('g?')
  t.has_not(t.page_text(), 'go to the words')
  t.type('q')
end)

t.case('a selection by characters goes along exactly, counted in UTF-16', function()
  t.edit('notes.md')
  vim.api.nvim_buf_set_lines(0, 0, -1, false, { 'A 🙂 lathe, who', 'gave it?', '', 'And 🙂🙂 end.' })
  vim.api.nvim_win_set_cursor(0, { 1, 7 }) -- on the l, after the emoji of four bytes
  t.type('vj0e')
  t.is(vim.fn.mode(), 'v')
  t.type('<Esc>')
  vim.cmd("'<,'>Cag ask " .. LATHE)
  local selection = t.last().selection
  t.is(selection.text, 'lathe, who\ngave')
  t.is(selection.range, { start = { line = 0, character = 5 }, ['end'] = { line = 1, character = 4 } })
  t.is(selection.uri, vim.uri_from_fname(t.project .. '/notes.md'))
  t.has(t.page()[2], 'about notes.md:1–2')
  t.wait('the answer', function()
    return t.last().state == 'done'
  end)
  t.type('q')
end)

t.case('a selection within a line, and one by lines', function()
  vim.api.nvim_win_set_cursor(0, { 4, 0 })
  t.type('fe')
  t.type('ve<Esc>')
  local of_range = require('cag.selection').of_range
  t.is(of_range(4, 4), {
    uri = vim.uri_from_bufnr(0),
    range = { start = { line = 3, character = 9 }, ['end'] = { line = 3, character = 12 } },
    text = 'end',
  })
  t.is(of_range(1, 2), {
    uri = vim.uri_from_bufnr(0),
    range = { start = { line = 0, character = 0 }, ['end'] = { line = 1, character = 8 } },
    text = 'A 🙂 lathe, who\ngave it?',
  })
  t.type('ggVj<Esc>')
  t.is(of_range(1, 2).text, 'A 🙂 lathe, who\ngave it?')
end)

t.case('a selection by block', function()
  vim.api.nvim_buf_set_lines(0, 0, -1, false, { 'ab🙂cd ef', 'xy', '12345678' })
  vim.api.nvim_win_set_cursor(0, { 1, 6 }) -- on the c, in the fifth column
  t.type('<C-v>jjl<Esc>')
  local selection = require('cag.selection').of_range(1, 3)
  t.is(selection.text, 'cd\n  \n56')
  t.is(selection.range, { start = { line = 0, character = 4 }, ['end'] = { line = 2, character = 6 } })
end)

t.case('<Plug>(cag-ask) asks about what is selected at this moment', function()
  local asked
  local input = vim.ui.input
  vim.ui.input = function(options, callback)
    asked = options.prompt
    callback(LATHE)
  end
  vim.api.nvim_win_set_cursor(0, { 3, 1 })
  vim.keymap.set({ 'n', 'x' }, 'Q', '<Plug>(cag-ask)')
  t.type('vlQ')
  vim.ui.input = input
  t.is(asked, 'Ask about the selection: ')
  t.is(t.last().selection.text, '23')
  t.is(vim.fn.mode(), 'n')
  t.wait('the answer', function()
    return t.last().state == 'done'
  end)
  t.type('q')
  vim.cmd('edit!')
end)

t.case('each key of a question is told to the daemon, which may read it already', function()
  local client = require('cag.client')
  local hint, told = client.hint, {}
  client.hint = function(asked, feature, method, params)
    table.insert(told, params.question)
    t.is({ feature, method, params.selection }, { 'typing', 'cag/typing' })
    hint(asked, feature, method, params)
  end
  t.type(':Cag<CR>Who<BS><Esc>')
  t.type(':echo 1<CR>')
  client.hint = hint
  t.is(told, { 'W', 'Wh', 'Who', 'Wh' })
end)

t.case('without words the question is asked for; no words are no question', function()
  local input = vim.ui.input
  local count = #require('cag.answers').list
  local prompts = {}
  for _, words in ipairs({ false, '  ', LATHE }) do
    vim.ui.input = function(options, callback)
      table.insert(prompts, options.prompt)
      callback(words or nil)
    end
    vim.cmd('Cag')
  end
  vim.ui.input = input
  t.is(prompts, { 'Ask the document: ', 'Ask the document: ', 'Ask the document: ' })
  t.is(#require('cag.answers').list, count + 1)
  t.wait('the answer', function()
    return t.last().state == 'done'
  end)
  t.type('q')
end)

t.case('subcommands, their words, ranges and bangs', function()
  pcall(vim.cmd, 'Cag Who donated the lathe?') -- an error in a command raises one
  t.told(LEVELS.ERROR, 'there is no :Cag Who; to ask: :Cag ask Who donated the lathe?')
  pcall(vim.cmd, 'Cag stop it') -- an error in a command raises one
  t.told(LEVELS.ERROR, ':Cag stop takes no words')
  pcall(vim.cmd, '1,2Cag refresh')
  t.told(LEVELS.ERROR, ':Cag refresh takes no range')
  pcall(vim.cmd, 'Cag! stop')
  t.told(LEVELS.ERROR, ':Cag stop takes no !')
  vim.cmd('Cag stop')
  t.told(LEVELS.INFO, 'nothing is running')
  vim.cmd('Cag previous')
  t.told(LEVELS.INFO, 'no question is waiting')
end)

t.case('completion knows the subcommands, and the questions of the session', function()
  local function complete(line)
    return vim.fn.getcompletion(line, 'cmdline')
  end
  t.is(complete('Cag '), {
    'again',
    'answer',
    'ask',
    'citations',
    'log',
    'longer',
    'previous',
    'refresh',
    'report',
    'restart',
    'status',
    'stop',
    'unload',
  })
  t.is(complete("'<,'>Cag re"), { 'refresh', 'report', 'restart' })
  t.yes(vim.tbl_contains(complete('Cag ask '), LATHE))
  t.yes(vim.tbl_contains(complete('Cag ask How mu'), 'much does membership cost?'))
  t.is(complete('Cag stop '), {})
end)

t.case('a statusline shows what the daemon is doing, and is told of changes', function()
  vim.o.laststatus = 2
  vim.o.statusline = "%{v:lua.require'cag'.status()}"
  local shown = vim.api.nvim_eval_statusline(vim.o.statusline, {}).str
  t.yes(shown:match('^cag ready · %d+ of %d[%d.]*k tokens$'), shown)
  t.is(shown, require('cag').status())
  t.is(require('cag').status_data().state, 'ready')
  t.yes(_G.status_events > 5)
  t.is(_G.last_status, require('cag').status_data())
end)

t.case(':Cag status tells state, model and document', function()
  local said = {}
  local echo = vim.api.nvim_echo
  vim.api.nvim_echo = function(chunks, ...)
    said = chunks
    return echo(chunks, ...)
  end
  vim.cmd('Cag status')
  t.wait('the status', function()
    return #said > 0
  end)
  vim.api.nvim_echo = echo
  local words = table.concat(vim.tbl_map(function(chunk)
    return chunk[1]
  end, said))
  t.has(words, 'cag ready · ')
  t.has(words, 'Ready: document.txt, ')
  t.has(words, 'embedded, 6.8 million parameters, float32 on cpu; a stand-in for a real Mistral')
  t.has(words, 'document.txt · ready · ')
  t.has(words, 'from the disk')
  t.has(words, '\nunloads')
end)

t.case(':Cag refresh reads where there is something to read, :Cag refresh! in any case', function()
  vim.cmd('Cag refresh')
  t.told(LEVELS.INFO, 'the document was read already')
  vim.cmd('Cag refresh!')
  t.told(LEVELS.INFO, ' tokens read in ')
  vim.cmd('Cag refresh!')
  vim.cmd('Cag stop')
  t.told(LEVELS.INFO, 'the reading is stopped')
  vim.cmd('Cag stop')
  t.told(LEVELS.INFO, 'nothing is running')
  t.wait('rest', function()
    return t.state() == 'ready'
  end)
  t.is(t.notices, {})
end)

t.case('citations can fill a quickfix list by themselves', function()
  vim.fn.setqflist({}, 'f')
  require('cag.config').set({ quickfix = true })
  t.ask(MONEY)
  require('cag.config').set()
  t.is(vim.fn.getqflist({ title = 0 }).title, MONEY)
  t.is(#vim.fn.getqflist(), 1)
  t.type('q')
end)

t.case('the report for a bug has versions and no folder', function()
  vim.cmd('Cag report')
  t.told(LEVELS.INFO, 'the report is in register')
  local report = vim.fn.getreg(vim.fn.has('clipboard') == 1 and '+' or '"')
  t.has(report, '**Question**: ' .. MONEY)
  t.has(report, '**Answer** (stop): Membership costs thirty-two euros a month.')
  t.has(report, '- model: embedded, quantization none, cpu, float32')
  t.has(report, '- document: version ' .. vim.fn.sha256(t.read('document.txt')):sub(1, 12))
  t.yes(report:match('%- citations: 0–%d+ at line 15'), report)
  t.yes(report:match('%- cag%-daemon %d[%w.]*, protocol 1; plugin %d[%w.]*, protocol 1'), report)
  t.has(report, '- Neovim 0.')
  t.has_not(report, t.project)
  t.has_not(report, vim.env.HOME)
  t.has_not(report, 'Students pay half')
  local failed = vim.tbl_extend('force', t.last(), {
    result = nil,
    state = 'failed',
    problem = { message = ('There is no %s/document.txt: create it.'):format(t.project), level = 3 },
  })
  failed.result = nil
  report = require('cag.report').of(failed)
  t.has(report, '- failed: There is no …/document.txt: create it.')
  t.has_not(report, t.project)
end)

t.case('a split, and a vertical one, have the same page, and keep their place', function()
  for _, kind in ipairs({ 'split', 'vsplit' }) do
    require('cag.config').set({ window = { kind = kind, width = 50, height = 9 } })
    vim.cmd('Cag answer')
    local win = t.answer_window()
    t.is(vim.api.nvim_win_get_config(win).relative, '')
    if kind == 'split' then
      t.is(vim.api.nvim_win_get_height(win), 9)
    else
      t.is(vim.api.nvim_win_get_width(win), 50)
    end
    t.has(vim.wo[win].winbar, 'go there')
    vim.api.nvim_win_set_cursor(0, { 3, 0 })
    t.type('<CR>')
    t.is(vim.api.nvim_buf_get_name(0), t.project .. '/document.txt')
    t.is(t.answer_window(), win)
    vim.api.nvim_set_current_win(win)
    t.type('q')
    t.is(t.answer_window(), nil)
  end
  require('cag.config').set()
end)

t.case('where the answer is alone, a jump makes room, and q leaves an empty window', function()
  require('cag.config').set({ window = { kind = 'split' } })
  vim.cmd('Cag answer')
  vim.cmd('only')
  vim.api.nvim_win_set_cursor(0, { 3, 0 })
  t.type('<CR>')
  t.is(vim.api.nvim_buf_get_name(0), t.project .. '/document.txt')
  t.is(#vim.api.nvim_list_wins(), 2)
  t.is(vim.wo.statuscolumn, '')
  t.is(vim.wo.winfixbuf, false)
  vim.api.nvim_set_current_win(t.answer_window())
  vim.cmd('only')
  t.type('q')
  t.is({ #vim.api.nvim_list_wins(), vim.api.nvim_buf_get_name(0), vim.bo.buftype }, { 1, '', '' })
  t.is(vim.wo.winfixbuf, false)
  vim.cmd('Cag answer')
  t.type('q')
  t.is(t.answer_window(), nil)
  require('cag.config').set()
end)

t.case('keys and border are for the user to choose; bad options are named, and not used', function()
  vim.cmd('silent! bwipeout! cag://answer')
  require('cag.config').set({
    window = { kind = 'flaot', border = 'none', colour = 'red' },
    keys = { close = 'x', help = false },
    quickfix = 'yes',
  })
  vim.cmd('Cag answer')
  local said = table.concat(
    vim.tbl_map(function(notice)
      return notice.message
    end, t.notices),
    '\n'
  )
  t.has(said, 'cag: window.kind: "flaot" is not accepted (float, split or vsplit); it is left out.')
  t.has(said, 'cag: window.colour: "red" is not accepted (there are kind, width, height, border)')
  t.has(said, 'cag: quickfix: "yes" is not accepted (true or false)')
  t.is(#t.notices, 3)
  t.is(vim.fn.maparg('g?', 'n', false, true).buffer, nil)
  t.type('x')
  t.is(t.answer_window(), nil)
  vim.cmd('silent! bwipeout! cag://answer')
  require('cag.config').set()
end)

t.case('options may also come from vim.g.cag', function()
  vim.g.cag = { window = { width = 44 } }
  require('cag.config').set()
  vim.cmd('Cag answer')
  t.is(vim.api.nvim_win_get_width(0), 44)
  t.type('q')
  vim.g.cag = nil
  require('cag.config').set()
end)

t.case('what the daemon warns of is shown once', function()
  local client = t.clients()[1]
  for _, value in ipairs({ 0, 256, 0 }) do
    t.notify(client, 'workspace/didChangeConfiguration', { settings = { cag = { maxNewTokens = value } } })
  end
  t.told(LEVELS.WARN, 'cag.maxNewTokens: 0 is not accepted')
  client.handlers['window/showMessage'](nil, { type = 2, message = 'The worker has ended.' }, {})
  client.handlers['window/showMessage'](nil, { type = 2, message = 'The worker has ended.' }, {})
  t.told(LEVELS.WARN, 'The worker has ended.')
end)

t.case('a failure that is a status and the reply to a question is told once, however often it is tried', function()
  local client = t.clients()[1]
  local failed = vim.deepcopy(require('cag').status_data())
  failed.state, failed.reason, failed.message =
    'failed', 'modelFailed', 'The model could not be loaded: choose another.'
  for _ = 1, 3 do
    client.handlers['cag/statusChanged'](nil, failed, { client_id = client.id })
  end
  require('cag.notice').failure(failed.message, LEVELS.ERROR)
  t.told(LEVELS.ERROR, 'cag: The model could not be loaded: choose another.')
end)

t.case('settings can be changed while the daemon runs, and taken back', function()
  require('cag').setup({ settings = { maxNewTokens = 5, systemprompt = 'no such key' } })
  t.told(LEVELS.WARN, 'settings.systemprompt: "no such key" is not accepted (there are document, systemPrompt,')
  t.is(t.ask(LATHE).result.tokens.generated, 5)
  require('cag').setup()
  t.is(t.ask(LATHE).text, BRANDT)
  t.type('q')
end)

t.case('a document that is too long is told of once, with the numbers, and the daemon goes on', function()
  local text = t.read('document.txt')
  t.write('document.txt', (text .. '\n'):rep(12))
  vim.cmd('Cag ask ' .. LATHE)
  t.wait('the end', function()
    return t.last().state == 'failed'
  end)
  t.is(t.last().problem.reason, 'documentTooLong')
  t.has(t.page_text(), t.last().problem.message)
  t.is(t.marked('CagWarning'), { t.last().problem.message })
  t.told(LEVELS.WARN, 'tokens')
  t.write('document.txt', text)
  t.is(t.ask(LATHE).text, BRANDT)
  t.type('q')
  t.is(t.notices, {})
end)

t.case(':checkhealth cag tells what is installed, what runs, and the end of the log', function()
  t.edit('notes.md')
  t.wait('the daemon to be ready', function()
    return (require('cag').status_data() or {}).state == 'ready'
  end)
  vim.cmd('checkhealth cag')
  local report = table.concat(vim.api.nvim_buf_get_lines(0, 0, -1, false), '\n')
  vim.cmd('tabclose')
  t.has(report, 'OK Neovim 0.')
  t.has(report, 'OK plugin ' .. require('cag.protocol').PLUGIN_VERSION)
  t.yes(report:match('OK [^\n]*/cag%-daemon, cag%-daemon, version %d'), report)
  t.has(report, 'OK model: embedded')
  t.has(report, 'OK document: ' .. t.project .. '/document.txt')
  t.yes(report:match('OK client %d+ in ' .. vim.pesc(t.project) .. ': cag%-daemon %d[%w.]*, protocol 1'), report)
  t.has(report, 'OK ready: Ready: document.txt')
  t.has(report, 'shared with it, unsaved changes included: document.txt')
  t.has(report, 'OK notes.md: its document is document.txt in ' .. t.project)
  t.has(report, 'cag: the end of the log')
  t.has_not(report, 'ERROR ')
end)

t.case(':Cag unload gives the memory back, and the next question brings the model', function()
  vim.cmd('Cag unload')
  t.told(LEVELS.INFO, 'the model has left memory')
  t.wait('the state', function()
    return require('cag').status() == 'cag unloaded'
  end)
end)

t.case(':Cag log opens the log', function()
  vim.cmd('Cag log')
  t.is(vim.api.nvim_buf_get_name(0), vim.fn.resolve(require('vim.lsp.log').get_filename()))
  vim.cmd('tabclose')
end)
