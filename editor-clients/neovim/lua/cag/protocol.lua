--- The wire contract as this plugin uses it: docs/PROTOCOL.md. A test compares these tables with the daemon's own.

local M = {}

--- The plugin's version: it travels with the daemon of the same version.
M.PLUGIN_VERSION = '0.1.0'

M.PROTOCOL_VERSION = 1

--- What a daemon's answer to `initialize` must list.
M.FEATURES = {
  'ask',
  'citations',
  'locate',
  'partial',
  'previous',
  'refresh',
  'selection',
  'short',
  'status',
  'unload',
}

M.METHODS = {
  ask = 'cag/ask',
  status = 'cag/status',
  refresh = 'cag/refresh',
  locate = 'cag/locate',
  unload = 'cag/unload',
  typing = 'cag/typing',
  partial = 'cag/partial',
  status_changed = 'cag/statusChanged',
}

M.STATES = { 'starting', 'noDocument', 'loading', 'reading', 'ready', 'answering', 'unloaded', 'failed' }

--- The keys of the settings section `cag`.
M.SETTINGS = {
  'document',
  'systemPrompt',
  'maxNewTokens',
  'refresh',
  'model',
  'device',
  'dtype',
  'quantization',
  'threads',
  'idleUnloadMinutes',
  'lingerSeconds',
  'cacheDirectory',
  'cacheMaxGigabytes',
  'memoryMaxGigabytes',
}

M.DEFAULT_DOCUMENT = 'document.txt'

--- The name of the model that comes along with the daemon.
M.EMBEDDED = 'embedded'

--- The longest answer that may be asked for, in tokens.
M.MOST_NEW_TOKENS = 4096

M.CODES = { cancelled = -32800, cancelled_by_daemon = -32802, failed = -32803 }

--- The settings of the daemon. What is left out has the daemon's own default.
---@class cag.Settings
---@field document? string One text file, relative to the project's folder, or absolute.
---@field systemPrompt? string Comes before the document.
---@field maxNewTokens? integer Upper bound of an answer, in tokens.
---@field refresh? 'auto'|'save'|'ask' When a changed text is read.
---@field model? string A hub id, a folder, `embedded`, or `auto`.
---@field device? string `auto`, `cpu`, `cuda`, `cuda:N`, `cuda+cpu` or `mps`.
---@field dtype? 'auto'|'float32'|'bfloat16'|'float16' The type of the weights.
---@field quantization? 'none'|'int8'|'int4'
---@field threads? integer Threads of the model.
---@field idleUnloadMinutes? number The model leaves memory after this; 0: never.
---@field lingerSeconds? number The shared daemon ends this long after its last editor.
---@field cacheDirectory? string Where KV caches go on disk.
---@field cacheMaxGigabytes? number KV caches on disk at most.
---@field memoryMaxGigabytes? number KV caches in memory at most.

---@class cag.Selection
---@field uri string
---@field range lsp.Range
---@field text string

---@class cag.AskParams
---@field question string
---@field id string
---@field document? string
---@field selection? cag.Selection
---@field maxNewTokens? integer
---@field whileRefreshing? 'wait'|'previous'

---@class cag.Citation
---@field answerRange integer[] From and up to, in UTF-16 code units of the answer.
---@field location lsp.Location
---@field match 'exact'

---@class cag.AskResult
---@field answer string
---@field finishReason 'stop'|'length'
---@field model { name: string, quantization: string }
---@field document { uri: string, version: string, tokens: integer }
---@field snapshot 'current'|'previous'
---@field citations cag.Citation[]
---@field tokens { cached: integer, prompt: integer, generated: integer, drafted: integer, accepted: integer }
---@field milliseconds { queued: number, firstToken: number, total: number }
---@field notice? string

---@class cag.Partial
---@field id string
---@field seq integer
---@field text string

---@class cag.DocumentStatus
---@field uri string
---@field state 'missing'|'waiting'|'reading'|'ready'|'failed'
---@field message? string
---@field reason? string
---@field version? string
---@field source 'disk'|'buffer'
---@field tokens? integer
---@field read? integer
---@field maxTokens? integer
---@field bytes? integer
---@field secondsLeft? number
---@field cached? { version: string, tokens: integer, computed: integer }
---@field notice? string

---@class cag.ModelStatus
---@field name string
---@field device string
---@field dtype string
---@field quantization string
---@field parameters integer
---@field bytes integer
---@field chunk integer

---@class cag.Status
---@field state 'starting'|'noDocument'|'loading'|'reading'|'ready'|'answering'|'unloaded'|'failed'
---@field short string
---@field message string
---@field reason? string
---@field percent? integer
---@field model? cag.ModelStatus
---@field documents cag.DocumentStatus[]
---@field queue integer
---@field unloadsInSeconds? number
---@field clients? { name: string, documents: string[] }[]

---@class cag.RefreshResult
---@field document { uri: string, version: string, tokens: integer }
---@field tokens { total: integer, kept: integer, computed: integer }
---@field milliseconds number

---@class cag.LocateResult
---@field document { uri: string, version: string }
---@field citations cag.Citation[]

--- What a daemon says of itself in its answer to `initialize`.
---@class cag.Experimental
---@field protocolVersion? integer
---@field features? string[]

return M
