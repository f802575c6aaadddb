"""What sentence-transformers writes is heeded: pooling, parts, length, lower case."""

import json
import shutil

import pytest

from input_pipeline import tokenizer
from model.interop import convert, files
from tests.model.interop import models
from training import foreign, sentences

TYPE = "sentence_transformers.models."
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "Cat", "##s")
NEW = "sentence_transformers.base.modules.transformer.Transformer"


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
  """A folder of BERT as transformers has it."""
  pytest.importorskip("tokenizers")
  folder = tmp_path_factory.mktemp("bert") / "x"
  config = models.one_tower("bert")
  state, card = convert.save(config, models.filled(config), "hf")
  files.write(folder, "hf", state, {"config.json": card})
  (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
  return folder


@pytest.fixture
def read(plain, tmp_path):
  """Returns a reader of the folder with more files in it."""

  def read(beside, at="", root=""):
    where = tmp_path / str(len([*tmp_path.iterdir()]))
    shutil.copytree(plain, where / at)
    for name, value in beside.items():
      (where / name).parent.mkdir(exist_ok=True)
      (where / name).write_text(json.dumps(value))
    return foreign.read(where / root)

  return read


def modules(*kinds):
  return [dict(type=kind, path=path) for kind, path in kinds]


def pool(found):
  return found.config.model.modalities.text.pool


def test_pooling_as_it_is_written_now_and_was(read):
  older = dict(pooling_mode_cls_token=True, pooling_mode_mean_tokens=False)
  assert pool(read({})) == "mean"
  assert pool(read({"1_Pooling/config.json": older})) == "first"
  assert (
    pool(read({"1_Pooling/config.json": {"word_embedding_dimension": 8}})) == "mean"
  )
  new = dict(embedding_dimension=8, pooling_mode="cls", include_prompt=True)
  assert pool(read({"1_Pooling/config.json": new})) == "first"
  assert (
    pool(read({"1_Pooling/config.json": new | {"pooling_mode": ["mean"]}})) == "mean"
  )
  for odd in ("max", ["cls", "mean"], 3):
    with pytest.raises(ValueError, match=r"1_Pooling/config\.json: pooling_mode = "):
      read({"1_Pooling/config.json": new | {"pooling_mode": odd}})
  with pytest.raises(
    ValueError, match=r"pooling_mode = \['cls', 'mean'\], expected one"
  ):
    read({"1_Pooling/config.json": older | {"pooling_mode_mean_tokens": True}})


def test_folders_are_those_of_modules_json(read):
  listed = modules((TYPE + "Transformer", "0_T"), (TYPE + "Pooling", "p"))
  beside = {"modules.json": listed, "p/config.json": {"pooling_mode": "cls"}}
  assert pool(read(beside, at="0_T")) == "first"
  for root in ("0_T", "0_T/model.safetensors"):
    assert pool(read(beside, at="0_T", root=root)) == "first"
  listed = modules(
    (NEW, ""), (TYPE + "Pooling", "1_Pooling"), (TYPE + "Normalize", "n")
  )
  beside = {"modules.json": listed, "1_Pooling/config.json": {"pooling_mode": "cls"}}
  found = read(beside)
  assert pool(found) == "first" and found.words.file == "tokenizer.json"


@pytest.mark.parametrize(
  "listed",
  [
    modules((NEW, ""), (TYPE + "Pooling", "1"), (TYPE + "Dense", "2_Dense")),
    modules((NEW, ""), (TYPE + "Normalize", "1"), (TYPE + "Pooling", "2")),
    modules(("custom_st.Transformer", "")),
    modules((NEW, ""), (TYPE + "Pooling", "1"), (TYPE + "Pooling", "2")),
  ],
)
def test_other_parts_are_refused(read, listed):
  with pytest.raises(ValueError, match=r"modules\.json lists .*, and no other"):
    read({"modules.json": listed})


def test_a_file_that_is_no_list_of_modules(read):
  for odd in ([{"type": 3}], {"a": 1}, 7, [None]):
    with pytest.raises(ValueError, match=r"modules\.json is not a list of modules"):
      read({"modules.json": odd})


def test_length_of_texts(read):
  def length(most=None, more=None):
    files = {"sentence_bert_config.json": {"max_seq_length": most}}
    files["tokenizer_config.json"] = {"model_max_length": more}
    return read(files).config.model.modalities.text.length

  assert length() == length(512) == length(None, 1e30) == length(None, 10**30) == 5
  assert length(4) == length(4, 3) == length(None, 4) == 4
  for odd in ("4", 0, True, [4]):
    with pytest.raises(ValueError, match=r"bert_config\.json: max_seq_length = "):
      length(odd)
    with pytest.raises(ValueError, match=r"zer_config\.json: model_max_length = "):
      length(None, odd)


def test_lower_case(read):
  def ids(said, lowercase):
    files = {"sentence_bert_config.json": {"do_lower_case": lowercase}}
    words = read(files | {"tokenizer_config.json": said}).words
    return tokenizer.check(words.data, words.file, len(WORDS)).encode("a Cat")

  cased = {"do_lower_case": False}
  assert ids({}, False) == ids(cased, True) == [5, 6]
  assert ids(cased, False) == ids(cased, None) == [5, 7]
  with pytest.raises(ValueError, match=r"bert_config\.json: do_lower_case = 'yes'"):
    ids({}, "yes")


def test_of_a_folder_that_says_nothing(tmp_path):
  assert sentences.parts(tmp_path) == {}
  assert sentences.read(tmp_path, tmp_path) == sentences.Sentences()


def test_modules_lie_in_their_folder(read):
  for place in ("../elsewhere", "/"):
    listed = modules((NEW, place))
    with pytest.raises(ValueError, match="lies outside its folder"):
      read({"modules.json": listed})
