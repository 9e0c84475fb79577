"""Turn messages, a template and a tokenizer into ids, a loss mask and pieces, and prove them; no torch.

A conversation of two exchanges, in Vicuna's template and with LLaMA-3's tokenizer:

    >>> from curate.schemas.conversation import Message
    >>> from curate.schemas.prompts import VICUNA, text
    >>> from curate.tokenization.tokenizer import load_tokenizer
    >>> messages = [
    ...     Message("system", "Be brief."),
    ...     Message("user", "Hi"),
    ...     Message("assistant", "Hello!"),
    ...     Message("user", "Bye"),
    ...     Message("assistant", "See you."),
    ... ]
    >>> tokenizer = load_tokenizer("llama3")

Its rendering is one text, in which control tokens are shown by name:

    >>> print(text(VICUNA, messages, bos="<BOS>", eos="<EOS>"))
    <BOS>Be brief. USER: Hi ASSISTANT: Hello!<EOS>USER: Bye ASSISTANT: See you.<EOS>

`compiled_template` writes it to a `text_batch`: *blocks* of text, and *control tokens*, which are ids from the start,
so that no text can become one. *Spans* are the characters of a block that may be supervised, here the two answers.

    >>> from curate.rendering.compiled_template import CompiledTemplate
    >>> from curate.rendering.text_batch import TextBatch
    >>> batch = TextBatch()
    >>> CompiledTemplate(VICUNA, tokenizer).append(batch, messages)
    >>> batch.blocks.text
    ['Be brief. USER: Hi ASSISTANT: Hello!', 'USER: Bye ASSISTANT: See you.']
    >>> list(zip(batch.controls.token, batch.controls.block, batch.controls.supervised))  # before which block
    [(128000, 0, False), (128001, 1, True), (128001, 2, True)]
    >>> list(batch.spans.rows())  # block, start, stop, supervised
    [(0, 29, 36, True), (1, 20, 29, True)]

`encode` tokenizes each block in one call, inserts the control tokens, and finds the tokens of each span. The loss mask
is true for the answers and the stop token after each:

    >>> from curate.rendering.encoding import encode
    >>> encoded = encode(batch, tokenizer)
    >>> encoded.offsets.tolist()  # of each rendering in the batch
    [0, 25]
    >>> for token, supervised in zip(encoded.ids.tolist(), encoded.loss_mask.tolist()):
    ...     print(f"{token:6} {supervised:d} {tokenizer.decode([token])!r}")
    128000 0 '<|begin_of_text|>'
      3513 0 'Be'
     10015 0 ' brief'
        13 0 '.'
     14194 0 ' USER'
        25 0 ':'
     21694 0 ' Hi'
     36660 0 ' ASS'
      3931 0 'IST'
      2891 0 'ANT'
        25 0 ':'
     22691 1 ' Hello'
         0 1 '!'
    128001 1 '<|end_of_text|>'
      6584 0 'USER'
        25 0 ':'
     90425 0 ' Bye'
     36660 0 ' ASS'
      3931 0 'IST'
      2891 0 'ANT'
        25 0 ':'
      3580 1 ' See'
       499 1 ' you'
        13 1 '.'
    128001 1 '<|end_of_text|>'

A renderer does all of this. The ids that ask for an answer, the *generation prompt*, are a prefix of the training ids:

    >>> from curate.rendering.factory import make_renderer
    >>> renderer = make_renderer("vicuna", tokenizer)
    >>> renderer.generation_prompt(messages[:4]).tolist() == encoded.ids[:21].tolist()
    True

How the modules follow one another:

    splitter             pieces that fit a window, counted by encoding.count_tokens
    choices              how reasoning, empty thoughts and tools that a template does not show are rendered
    factory              a template → its renderer.Renderer: a template_renderer or a chat_template.renderer
    compiled_template    a built-in template → text_batch
    chat_template        a model's own Jinja template, cut into parts by placeholders → text_batch
    encoding             text_batch → ids, loss mask and offsets
    proof, proof_fast    ids and loss mask compared with what the messages require (expected)
    preparation, resplit a curated set → proven examples, split again where set and model differ
    pairs                both sides of a preference pair, as conversations of their own
    mask_view            a rendering and its loss mask for display
"""
