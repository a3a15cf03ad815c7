--- What is around the answer: the window's place and size, its title, the few keys that matter now.

local config = require('cag.config')

local M = {}

M.READING_WIDTH = 84 -- columns of a float or a vertical split, unless the user says otherwise

local FLOAT_SHARE, SPLIT_SHARE = 0.8, 0.35 -- of the screen's height
local LEAST_HEIGHT = 3

--- What the frame depends on.
---@class cag.Scene
---@field index integer Which answer is shown.
---@field count integer How many there are.
---@field running boolean
---@field offered boolean
---@field cited boolean
---@field needed integer Lines of the screen that the text takes.

--- A size in cells: a share of the screen, or a number of them; never more than there is.
---@param size number
---@param screen integer
---@return integer
local function cells(size, screen)
  return math.max(1, math.min(math.floor(size < 1 and size * screen or size), screen))
end

---@param scene cag.Scene
---@return string
local function title(scene)
  return scene.count > 1 and (' Cag · %d of %d '):format(scene.index, scene.count) or ' Cag '
end

--- The few keys that matter now, as chunks of a footer: as many as there is room for, the most general first.
---@param scene cag.Scene
---@param room integer Columns.
---@return [string, string][]
local function hints(scene, room)
  local wanted
  if scene.running then
    wanted = { { 'stop', 'stop' }, scene.offered and { 'previous', 'earlier version' } or { 'close', 'close' } }
  else
    wanted = { scene.cited and { 'jump', 'go there' } or { 'again', 'ask again' }, { 'close', 'close' } }
  end
  wanted[#wanted + 1] = { 'help', 'keys' }
  local chunks = {}
  for index = #wanted, 1, -1 do
    local name, words = unpack(wanted[index])
    local key = config.get().keys[name]
    local width = vim.fn.strdisplaywidth(('%s  %s '):format(key, words))
    if key and width <= room then
      table.insert(chunks, 1, { ' ' .. words .. ' ', 'CagNote' })
      table.insert(chunks, 1, { ' ' .. key, 'CagKey' })
      room = room - width
    end
  end
  return chunks
end

--- How a float lies: its top stays where it is while its text grows.
---@param scene cag.Scene
---@return vim.api.keyset.win_config
function M.float(scene)
  local options = config.get().window
  local columns, lines = vim.o.columns, vim.o.lines - vim.o.cmdheight - 1
  local width = math.max(1, math.min(cells(options.width or M.READING_WIDTH, columns), columns - 4))
  local most = math.max(LEAST_HEIGHT, math.min(cells(options.height or FLOAT_SHARE, lines), lines - 2))
  local border = options.border
  if border == nil and vim.fn.exists('+winborder') == 1 and vim.o.winborder ~= '' then
    border = vim.o.winborder
  end
  local framed = border ~= 'none'
  return {
    relative = 'editor',
    width = width,
    height = math.min(math.max(scene.needed, LEAST_HEIGHT), most),
    row = math.max(0, math.floor((lines - most - 2) / 2)),
    col = math.max(0, math.floor((columns - width - 2) / 2)),
    border = border or 'rounded',
    title = framed and title(scene) or nil,
    title_pos = framed and 'left' or nil,
    footer = framed and hints(scene, width - 2) or nil,
    footer_pos = framed and 'right' or nil,
  } --[[@as vim.api.keyset.win_config]]
end

--- The command that opens a split, of the size that the user wants.
---@return string
function M.split()
  local options = config.get().window
  if options.kind == 'vsplit' then
    return ('botright vertical %dsplit'):format(cells(options.width or M.READING_WIDTH, vim.o.columns))
  end
  return ('botright %dsplit'):format(cells(options.height or SPLIT_SHARE, vim.o.lines))
end

--- What a split says above its text: what a float has in its frame.
---@param scene cag.Scene
---@param width integer
---@return string
function M.bar(scene, width)
  local function escaped(words)
    return (words:gsub('%%', '%%%%'))
  end
  local parts = { '%#CagNote#', escaped(title(scene)), '%=' }
  for _, chunk in ipairs(hints(scene, width - vim.fn.strdisplaywidth(title(scene)))) do
    vim.list_extend(parts, { '%#', chunk[2], '#', escaped(chunk[1]) })
  end
  return table.concat(parts)
end

return M
