"""cag-daemon: a language server that knows one document of your project by heart.

Two worlds and a pipe between them; a room imports only from lower floors, the ground floor nothing of ours:

    cli           ask · serve · status · unload · stop · doctor · pull · clean · client: arguments in, words out
    once          one question from the command line: through a running front, or in this process
    joined        a question through the front that runs already
    control       `status`, `unload` and `stop`: the front, seen and told from outside
    doctor        what is installed, which model would be used and why, and does it work here
    pull          `pull MODEL`, in words: what is fetched, how far it is, where it is
    download      a model's files from the hub into its local cache: the only room that uses the network
    choice        `pull` alone: which models this machine could run, and which to fetch first
    clean         what is kept on this machine: listed, and deleted when the user says so
    refusals      what the hub, the network or the disk answered instead of a model, in a sentence
    clients       the editors' clients that come along: where they are, and how they get into the editor
    front/        knows LSP, never imports torch
      shim            the forwarder, which an editor starts: stdio to the shared front's socket and back
      host            shared mode: who connects to the one front, what they are told, and when it ends
      neighbours      daemons that share nothing know of each other's models
      server          one short handler per method; errors become codes; status goes out
      commands        for editors without a client of ours: the commands, and the code action
      announce        what goes out unasked: status, diagnostics, progress
      jsonrpc         LSP's manners: every request gets exactly one reply
      status          the state of a session, in the contract's words and the user's
      session         a workspace: folders, buffers, settings, questions
      reader          what is read next: one at a time, questions first, newest wins
      document        what a document's text is now, and what is cached of it
      pool            who shares what: a backend for each kind of model, a seat at it for each session
      turns           whose text is read next, where several share a worker
      backend         the engine seen from here: starts, watches and restarts the worker
      watch           changes of a file on disk, as an early warning
      protocol        the wire contract: method names, params, results, states
    engine/       knows torch, never LSP
      worker          the process: messages in, messages out
      check           a model put to the test: is a cached answer the uncached one, and how fast
      engine          Engine: documents and their caches; read a text, answer a question
      document_cache  caches of texts, as ids: a buffer, the ends of others, a memory budget
      keeping         what is cached and what is on disk, kept alike: restored, verified, written
      store           KV segments on disk
      self_test       does a refreshed cache have the bits of a fresh one here? tried once, before it is relied on
      typed           a question that is still being typed, read behind its document
      fitting         whether a text fits: how many tokens a document may have
      answer_text     from tokens to text while they still come
      prompt          the one template: document prefix and question suffix, as token ids
      tokenizer       load_tokenizer: from whichever files a model folder holds, with a chat template
      vocabulary      Mistral's own tokenizer files: tekken.json, tokenizer.model
      model           load_model: a Mistral into memory, as planned
      plan            which model, where and how it is held, whether that fits: before anything is loaded
      installed       where models are on this machine: folders, and the local hub cache
      folder          a model folder: whether it is whole and ours to load, and what is in it
      quantized_weights  quantised while they are loaded, and kept
      kept_weights    quantised weights on disk
      weights         from the files of a model into its place in memory, a weight at a time
      devices         what a model can run on here, and in which type
      memory          what a model and its document need, and what is free
      cag             the public core: get_kv_cache, clean_up, generate (+ prefill, generate_step)
      speed           how fast this machine is, in about a second
      kv_cache        the cache layer that writes in place
      attention       packed grouped queries, keys up to a grid
      linear          linear layers whose weights lie as the processor wants them
      passes          a pass through the model: whole or not at all, and stoppable
      narrow          passes of few rows through a Mistral by code of our own: for whom, and tried
      narrow_pass     such a pass: what its code is called with, layer by layer
      layer_code      a decoder layer for few rows, as machine code
      layer_call      what that is called with
      attention_code  attention of few rows, as machine code
      few_rows        products of few rows with packed weights, as machine code
      tiles           the same by Intel's tiles, where sixteen rows cost what one does
      few_bits        the same with weights of 8 and 4 bits
      widening        products of many rows with such weights, widened some outputs at a time
      widening_code   the machine code for that
      machine_code    LLVM's intermediate code, made readable
      compiling       machine code for this processor, and torch's threads to run it
      decoding        the passes of one answer: a question in pieces, tokens, drafts verified
      drafts          how an answer may go on: copied from document, question and earlier answers
      widths          how many rows a pass may have, such that a row's bits stay the same
      quantize        linear layers whose weights are held in 8 or 4 bits
      packed_operators  torch's private operators for such weights: per device, and only where they are right
    messages      what travels over the pipe
    citations     where the words of an answer stand in the text
    text          a document's text: reading, normalising, version, positions
    advice        which of the known models suit a machine, and which to try first
    catalogue     Mistral's models as data, and what each takes
    runtime       shared mode: where the front's socket is, how one becomes the front, how one talks to it
    places        the paths that are ours, and who writes there
    brought       what `pull` has brought into the hub's cache
    config        Settings: flags, environment, editor
    flags         the flags of `serve`: one definition, for the command line and for the front
    offline       no network for this process, and a note of everything that wanted it
    errors        every error a user can meet
    embedded/     the embedded Mistral: weights, tokenizer, prompt

``from cag_daemon import get_kv_cache, clean_up, generate`` is the tutorial's flow; torch is not imported until then.
"""

from __future__ import annotations

TYPE_CHECKING = False  # not from typing: each editor's forwarder would have that in memory
__version__ = "0.1.0"
__all__ = ["__version__", "clean_up", "generate", "generate_step", "get_kv_cache", "prefill"]

if TYPE_CHECKING:
    from typing import Any

    from cag_daemon.engine.cag import clean_up, generate, generate_step, get_kv_cache, prefill


def __getattr__(name: str) -> Any:
    """Load the public core when it is first used (PEP 562): the front must never import torch."""
    if name in __all__:
        from cag_daemon.engine import cag

        return getattr(cag, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
