"""The Neovim plugin's tests: cases in Lua, run in the real editor, each reported as a case of pytest."""
