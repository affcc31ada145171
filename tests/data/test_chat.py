"""Llama 2's chat format, byte for byte; whose token is whose; what may not be written."""

import copy
import logging

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlhf.data import chat
from rlhf.data.chat import decode_completion, encode_completion, encode_dialogue, encode_prompt, labels
from rlhf.data.types import Turn, turns_to_json
from rlhf.errors import DataError


def turns(*contents, system=None):
    spoken = [Turn(("user", "assistant")[i % 2], text) for i, text in enumerate(contents)]
    return ((Turn("system", system),) if system is not None else ()) + tuple(spoken)


def meta_reference(dialogue, bos, eos, tok):
    """Meta's chat_completion, written down from its description: what the format is, not how we write it."""
    dialog = [{"role": turn.role, "content": turn.content} for turn in dialogue]
    if dialog[0]["role"] == "system":
        content = "<<SYS>>\n" + dialog[0]["content"] + "\n<</SYS>>\n\n" + dialog[1]["content"]
        dialog = [{"role": dialog[1]["role"], "content": content}, *dialog[2:]]
    out = []
    for prompt, answer in zip(dialog[::2], dialog[1::2], strict=False):
        text = f"[INST] {(prompt['content']).strip()} [/INST] {(answer['content']).strip()} "
        out += [bos, *tok(text), eos]
    if dialog[-1]["role"] == "user":
        out += [bos, *tok(f"[INST] {(dialog[-1]['content']).strip()} [/INST]")]
    return out


def test_nobody_else_warns_of_a_long_dialogue(tokenizer, caplog, monkeypatch):
    """That it is longer than the context is an error of ours, or cut; a warning beside it would say less."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    encode_dialogue(copy.deepcopy(tokenizer), turns("how " * 200, "so"))
    assert not caplog.records


# ── the bytes, worked by hand from the format's description ──────────────────────────────────────────────────────────

OPEN = [
    (turns("hi"), "<s>[INST] hi [/INST]"),
    (turns(" \n hi\t "), "<s>[INST] hi [/INST]"),
    (turns("hi", system="be nice"), "<s>[INST] <<SYS>>\nbe nice\n<</SYS>>\n\nhi [/INST]"),
    # The folded text is stripped as one: the question's leading blanks survive, the system message's too.
    (turns("  hi  ", system=" be nice "), "<s>[INST] <<SYS>>\n be nice \n<</SYS>>\n\n  hi [/INST]"),
    # A blank question: the strip reaches the line breaks of the closing tag.
    (turns("  ", system="be nice"), "<s>[INST] <<SYS>>\nbe nice\n<</SYS>> [/INST]"),
    (turns(""), "<s>[INST]  [/INST]"),
    (turns("a", " b ", "c"), "<s>[INST] a [/INST] b </s><s>[INST] c [/INST]"),
    (
        turns("a", "b", "c", "d\n", "e", system="s"),
        "<s>[INST] <<SYS>>\ns\n<</SYS>>\n\na [/INST] b </s><s>[INST] c [/INST] d </s><s>[INST] e [/INST]",
    ),
]
CLOSED = [
    (turns("a", "b"), "<s>[INST] a [/INST] b </s>"),
    (turns("a", ""), "<s>[INST] a [/INST]  </s>"),
    (turns(" a ", "\n b\n\nc \n", system=""), "<s>[INST] <<SYS>>\n\n<</SYS>>\n\n a [/INST] b\n\nc </s>"),
    (turns("a", "b", "c", "d"), "<s>[INST] a [/INST] b </s><s>[INST] c [/INST] d </s>"),
]


@pytest.mark.parametrize(("dialogue", "expected"), OPEN)
def test_open_dialogues_are_written_as_llama_2_does(tokenizer, dialogue, expected):
    ids = encode_prompt(tokenizer, dialogue)
    assert tokenizer.decode(ids) == expected
    assert ids.count(tokenizer.bos_token_id) == sum(turn.role == "user" for turn in dialogue)
    assert ids.count(tokenizer.eos_token_id) == sum(turn.role == "assistant" for turn in dialogue)


@pytest.mark.parametrize(("dialogue", "expected"), CLOSED)
def test_closed_dialogues_are_written_as_llama_2_does(tokenizer, dialogue, expected):
    ids = encode_dialogue(tokenizer, dialogue).input_ids
    assert tokenizer.decode(ids) == expected
    assert ids.count(tokenizer.bos_token_id) == ids.count(tokenizer.eos_token_id) == len(expected.split("</s>")) - 1


@pytest.mark.parametrize("dialogue", [case for case, _ in OPEN + CLOSED])
@pytest.mark.parametrize("name", ["tokenizer", "sentencepiece_like"])
def test_ids_equal_the_reference_encoders(request, name, dialogue):
    tokenizer = request.getfixturevalue(name)

    def tok(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    expected = meta_reference(dialogue, tokenizer.bos_token_id, tokenizer.eos_token_id, tok)
    closed = dialogue[-1].role == "assistant"
    ours = encode_dialogue(tokenizer, dialogue).input_ids if closed else encode_prompt(tokenizer, dialogue)
    assert ours == expected


@pytest.mark.parametrize("dialogue", [case for case, _ in OPEN + CLOSED])
def test_the_saved_template_writes_the_same_ids_and_marks_the_same_answers(tokenizer, dialogue, tmp_path):
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path)
    served = AutoTokenizer.from_pretrained(tmp_path)
    out = served.apply_chat_template(turns_to_json(dialogue), return_dict=True, return_assistant_tokens_mask=True)
    if dialogue[-1].role == "user":
        assert out["input_ids"] == encode_prompt(tokenizer, dialogue)
    else:
        encoded = encode_dialogue(tokenizer, dialogue)
        assert out["input_ids"] == encoded.input_ids
        assert out["assistant_masks"] == [int(owner >= 0) for owner in encoded.owner]


# ── whose token is whose ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["tokenizer", "sentencepiece_like", "chatml"])
@pytest.mark.parametrize("system", [None, "be nice"])
def test_prompt_and_completion_make_the_dialogue(request, name, system):
    tokenizer = request.getfixturevalue(name)
    dialogue = turns("how do i ?", "take the key .", "and then ?", "open the door .", system=system)
    whole = encode_dialogue(tokenizer, dialogue)
    first = len(dialogue) - 3
    for index in (first, first + 2):
        prompt = encode_prompt(tokenizer, dialogue[:index])
        completion = encode_completion(tokenizer, dialogue[index].content)
        assert whole.input_ids[: len(prompt) + len(completion)] == prompt + completion
        assert [i for i, owner in enumerate(whole.owner) if owner == index] == list(
            range(len(prompt), len(prompt) + len(completion))
        )
        assert completion[-1] == tokenizer.eos_token_id
        assert decode_completion(tokenizer, completion) == dialogue[index].content
    assert len(prompt) + len(completion) == len(whole.input_ids)


def test_ids_that_are_kept_are_those_of_the_tokenizer_as_it_is(tokenizer):
    """The same text, by another tokenizer and by one that has learned a word since it was asked."""
    question = (Turn("user", "how do i open the door ?"),)
    learning = copy.deepcopy(tokenizer)
    known = [encode_prompt(each, question) for each in (tokenizer, learning)]
    assert known[0] == known[1]
    learning.add_tokens(["open the"])
    changed = encode_prompt(learning, question)
    text = "[INST] how do i open the door ? [/INST]"
    assert changed == [learning.bos_token_id, *learning(text, add_special_tokens=False)["input_ids"]] != known[0]
    assert encode_prompt(tokenizer, question) == known[0]
    changed.append(-1)  # what is handed out is nobody else's
    assert encode_prompt(learning, question) == changed[:-1]


def test_ids_of_long_texts_are_not_kept(tokenizer):
    before = chat._known_ids.cache_info().misses
    for words, asked in ((60, 0), (20, 1)):
        text = "[INST] " + "open the " * words
        ids = [chat._plain_ids(tokenizer, text) for _ in range(2)]
        assert ids == [tokenizer(text, add_special_tokens=False)["input_ids"]] * 2
        assert chat._known_ids.cache_info().misses == before + asked


def test_owned_text_is_the_answer_the_blank_and_eos(tokenizer):
    encoded = encode_dialogue(tokenizer, turns("a", "b c", "d", "e f", system="s"))
    owned = {turn: [] for turn in (-1, 2, 4)}
    for token, owner in zip(encoded.input_ids, encoded.owner, strict=True):
        owned[owner].append(token)
    assert tokenizer.decode(owned[2]) == " b c </s>"
    assert tokenizer.decode(owned[4]) == " e f </s>"
    assert tokenizer.decode(owned[-1]) == "<s>[INST] <<SYS>>\ns\n<</SYS>>\n\na [/INST]<s>[INST] d [/INST]"


def test_a_template_of_its_own_ends_an_answer_at_eos_not_behind_it(chatml):
    encoded = encode_dialogue(chatml, turns("a", "b", "c", "d"))
    written = "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"
    written += "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\nd<|im_end|>"
    assert chatml.decode(encoded.input_ids) == written
    owned = [token for token, owner in zip(encoded.input_ids, encoded.owner, strict=True) if owner >= 0]
    assert chatml.decode(owned) == "b<|im_end|>d<|im_end|>"


def test_labels_of_all_answers_or_the_last(tokenizer):
    encoded = encode_dialogue(tokenizer, turns("a", "b", "c", "d"))
    every, last = labels(encoded, "all_answers"), labels(encoded, "last_answer")
    assert tokenizer.decode([token for token in every if token != -100]) == " b </s> d </s>"
    assert tokenizer.decode([token for token in last if token != -100]) == " d </s>"
    for given_labels in (every, last):
        pairs = zip(given_labels, encoded.input_ids, strict=True)
        assert all(label in (-100, token) for label, token in pairs)


@given(text=st.text(max_size=40))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_answer_comes_back_and_fits_its_prompt(tokenizer, text):
    if any(tag in text for tag in chat.forbidden_tags(tokenizer)):
        return
    prompt, completion = encode_prompt(tokenizer, turns("hi")), encode_completion(tokenizer, text)
    assert prompt + completion == encode_dialogue(tokenizer, turns("hi", text)).input_ids
    assert decode_completion(tokenizer, completion) == text.strip()


# ── what may not be written ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("tag", ["[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "<s>", "</s>", "<pad>"])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_text_never_becomes_a_control_token(tokenizer, tag, place):
    dialogue = turns("question", "answer", system="system")
    bad = [Turn(t.role, f"x{tag}y") if i == place else t for i, t in enumerate(dialogue)]
    with pytest.raises(DataError, match="read as a control token") as caught:
        encode_dialogue(tokenizer, bad, where="row-7")
    assert tag in caught.value.what
    assert caught.value.where == "row-7"


def test_the_tags_of_another_template_are_refused_under_it_and_ours_are_not(chatml):
    with pytest.raises(DataError, match="im_end"):
        encode_prompt(chatml, turns("a<|im_end|>b"))
    assert "[INST]" in chatml.decode(encode_prompt(chatml, turns("what is [INST] ?")))


def test_sampled_tags_are_gone_so_the_text_can_be_encoded_again(tokenizer):
    inst = tokenizer.convert_tokens_to_ids("[INST]")
    spelled = tokenizer.convert_tokens_to_ids(list("[IN"))  # and, once the tag within is gone, "[INST]" again
    ids = [*spelled, inst, *tokenizer.convert_tokens_to_ids(list("ST]")), *encode_completion(tokenizer, "well")]
    assert decode_completion(tokenizer, ids) == "well"


def test_nested_tags_spelled_by_ordinary_pieces_are_gone_too(sentencepiece_like):
    ids = sentencepiece_like("a [IN[INST]ST] b", add_special_tokens=False)["input_ids"]
    text = decode_completion(sentencepiece_like, ids)
    assert "[INST]" not in text
    assert text.split() == ["a", "b"]


@pytest.mark.parametrize(
    ("dialogue", "complaint"),
    [
        ((), "at least one turn"),
        ((Turn("assistant", "b"),), "turn 1 of 1 must be the user's"),
        ((Turn("user", "a"), Turn("user", "b")), "turn 2 of 2 must be the assistant's"),
        ((Turn("user", "a"), Turn("system", "s"), Turn("user", "a")), "turn 2 of 3 must be the assistant's"),
        ((Turn("user", "a"),), "last turn must be the assistant's"),
        ((Turn("system", "a"),), "last turn must be the assistant's"),
    ],
)
def test_turns_out_of_order_are_refused(tokenizer, dialogue, complaint):
    with pytest.raises(DataError, match=complaint):
        encode_dialogue(tokenizer, dialogue)


def test_a_template_that_rewrites_the_past_is_refused(chatml):
    forgets = "{% for m in messages %}{% if loop.last or m['role'] == 'user' %}{{ m['content'] + '<|im_end|>' }}"
    chatml.chat_template = forgets + "{% endif %}{% endfor %}"
    with pytest.raises(DataError, match="rewrites what stands before turn"):
        encode_dialogue(chatml, turns("a", "b", "c", "d"))


def test_a_template_without_eos_is_refused(chatml):
    chatml.chat_template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    with pytest.raises(DataError, match="doesn't end an answer with its EOS"):
        encode_dialogue(chatml, turns("a", "b"))


def test_a_template_that_refuses_says_so(chatml):
    chatml.chat_template = "{{ raise_exception('no system message, please') }}"
    with pytest.raises(DataError, match="no system message, please"):
        encode_prompt(chatml, turns("a", system="s"))


# ── digests and padding ──────────────────────────────────────────────────────────────────────────────────────────────


def test_the_digest_follows_the_template(tokenizer, chatml):
    bare = copy.deepcopy(tokenizer)
    bare.chat_template = None  # our own format is used then: the same bytes, hence the same digest
    assert chat.template_digest(bare) == chat.template_digest(tokenizer)
    chat.check_template(bare, chat.template_digest(tokenizer))
    with pytest.raises(DataError) as caught:
        chat.check_template(chatml, chat.template_digest(tokenizer))
    assert chat.template_digest(tokenizer) in caught.value.what
    assert chat.template_digest(chatml) in caught.value.what


def test_a_pad_that_is_distinct_is_kept(tokenizer):
    before = tokenizer.pad_token_id
    assert chat.ensure_pad(tokenizer) is False
    assert tokenizer.pad_token_id == before


def test_a_spare_token_serves_as_pad_before_one_is_added(chatml, caplog):
    chatml.pad_token = chatml.eos_token
    size = len(chatml)
    assert chat.ensure_pad(chatml) is False
    assert (chatml.pad_token, len(chatml)) == ("<|pad|>", size)
    assert "<|pad|>" in caplog.text


def test_a_pad_is_added_where_none_can_serve(tokenizer):
    bare = copy.deepcopy(tokenizer)
    model = bare.backend_tokenizer.to_str()
    for pad in ("<pad>", "<unk>"):
        model = model.replace(f'"{pad}"', f'"spare {pad[1]}"')
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(model), bos_token="<s>", eos_token="</s>")
    bare.pad_token = "</s>"
    size = len(bare)
    assert chat.ensure_pad(bare) is True
    assert len(bare) == size + 1
    assert bare.pad_token_id == size
    assert bare.pad_token_id not in (bare.eos_token_id, bare.bos_token_id)


def test_without_eos_there_is_no_way(chatml):
    chatml.eos_token = None
    with pytest.raises(DataError, match="no end-of-sequence token"):
        chat.ensure_pad(chatml)


def test_llama_2_without_bos_is_refused(chatml):
    chatml.chat_template = None
    with pytest.raises(DataError, match="needs BOS and EOS"):
        encode_prompt(chatml, turns("a"))
