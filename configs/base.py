"""Every key a recipe may set, with its type, unit and default.

A recipe is `get_config(arg)` of a file in configs/; it starts from this one and changes
what its paper changes. `arg` is what follows the colon in
`--config configs/limoe_emoji.py:runlocal`, parsed by `configs.args.parse`.
An unknown key on the command line fails: the ConfigDict is locked by train.py.
"""

from ml_collections import ConfigDict

IMAGE_TEXT = (("image", "text"),)


def modality(**changes) -> ConfigDict:
  """One entry of `config.model.modalities`: from a raw array to tokens to a vector."""
  c = ConfigDict()
  # "patches" (image, spectrogram, series: any 2-D; video) | "tokens" (ids) |
  # "token_patches" (lines or bars of ids). docs/modalities.md has one of each.
  c.stem = "patches"
  c.size = ()  # patches: ([frames,] height, width, channels); of [b, t, f] (t, f, 1)
  c.patch = ()  # ([frames,] height, width) of a patch; token_patches: (ids of one,)
  # patches: options of model/mel.py, to make spectrograms of waveforms f32[b, size[0] *
  # hop] on the device; empty: the batch holds spectrograms, or whatever else.
  c.log_mel = ConfigDict()
  c.vocab = 0  # tokens: number of ids, the padding id 0 included
  c.length = 0  # tokens: sequence length; token_patches: patches
  # Which ids are real where the batch has no mask of them:
  c.pad = 0  # tokens: the id of padding; -1: none is, all ids are real
  c.eos = (
    -1
  )  # tokens: the id that ends a text: it is real, what follows is not; -1: none
  # Wide path: a linear map of descriptors, added to the embedding past the trunk.
  c.gradients = ()  # patches: (cells per side, bins) of gradient histograms; (): none
  c.colors = ()  # patches: (cells per side, bins per channel) of colors; (): none
  c.color_range = (0.0, 1.0)  # patches: least and greatest value, for `colors`
  c.drop_descriptors = 0.0  # patches: share of their cells that training sets to 0
  c.ngrams = 0  # tokens: letter n-grams of the text, behind its ids; 0: none
  c.ngram_rows = 32_768  # tokens: rows of the table that n-grams are hashed into
  c.drop_ngrams = 0.0  # tokens: share of the n-grams that training leaves out
  c.drop_patches = 0.0  # patches: share that training leaves out (FLIP)
  c.stem_bias = True  # patches: of the linear map to tokens
  c.stem_norm = False  # a norm between the stem and the trunk, as in CLIP's image tower
  c.registers = 0  # learned tokens behind the one of pool "cls", without positions
  # Training packs short sequences of this modality into shared rows, where its padding
  # costs nothing: docs/mixtures.md. What does not fit is cut, the longest first.
  c.pack = ConfigDict()
  c.pack.tokens = 0  # of an example in the trunk, in the mean of its group; 0: unpacked
  c.pack.rows = 4  # rows that attend as one; rows * tokens hold any whole example
  c.pack.group = 32  # consecutive examples packed together: a multiple of `rows`
  c.position = "learned"  # "learned" | "sincos" | "none"
  c.pool = "mean"  # "mean" | "cls" | "first" | "last" | "map"
  c.project = True  # a linear layer from width to embed_dim
  c.project_bias = False  # its bias
  c.trunk = ConfigDict()  # own trunks only: overrides of config.model.trunk
  c.update(changes)
  return c


def trunk() -> ConfigDict:
  """`config.model.trunk`: the transformer blocks."""
  c = ConfigDict()
  c.width = 384
  c.depth = 8
  c.heads = 6
  c.mlp = 1536  # hidden width of the MLP and of each expert
  c.dropout = 0.0  # on the outputs of attention and MLP
  c.drop_path = 0.0  # stochastic depth rate of the last block; linear from 0
  c.norm = "layernorm"  # "layernorm" | "rmsnorm"
  c.epsilon = 1e-6  # of the norms, added to the variance
  c.norm_after = False  # norms follow the residual sums (BERT), and none is at the end
  c.layer_scale = (
    0.0  # what attention and MLP are first multiplied by; 0: no such scale
  )
  c.activation = "gelu_tanh"  # of MLPs and experts: "gelu_tanh" | "gelu" | "quick_gelu"
  c.causal = False  # attention looks only backwards (text towers as in CLIP)
  # "xla"; on GPUs "cudnn", or "triton", kernels of our own: see docs/performance.md.
  c.attention = "xla"
  return c


def moe() -> ConfigDict:
  """`config.model.moe`: the sparse layers; every = 0 is a dense model."""
  c = ConfigDict()
  c.every = 0  # every n-th block is sparse; 2: blocks 1, 3, 5, ...
  c.layers = ()  # explicit 0-based block indices instead of `every`
  # A file of model/moe/routers/: "token_choice" | "expert_choice" | "soft". Which of
  # the keys below each heeds, and why the last two want group = 1, is written there.
  c.router = "token_choice"
  c.experts = 8
  c.k = 1  # experts per token; expert_choice: in the mean
  c.slots = 1  # soft: of each expert
  c.capacity = 1.05  # buffer slots over the mean load, while training
  c.capacity_eval = 4.0  # the same in evaluation; token_choice
  c.group = 8  # examples per routing group; token_choice: of all modalities together
  c.priority = True  # token_choice: the surest tokens get the slots first
  c.noise = 1.0  # token_choice: std while training, in units of 1 / experts
  c.dispatch = "gather"  # "gather" | "einsum" | "dropless": no capacity (token_choice)
  # In how many pieces slots travel over config.mesh.expert; 2 hides half of it on TPUs,
  # but not on v5e (docs/scale.md).
  c.pieces = 1
  c.dropless_kernel = "auto"  # by the device | "megablox" | "ragged_dot"
  c.statistics = "global"  # of the losses: over the "global" batch or each "group"
  c.identical_init = False  # all experts of a layer start equal, as V-MoE's do
  c.weight = 0.04  # of the mean of the enabled auxiliary losses
  # loss -> weight, or modality -> weight. An absent or zero one is not computed.
  c.losses = ConfigDict(
    dict(
      importance=1.0,
      load=1.0,
      gshard=0.0,  # the classic balancing loss, instead of importance and load
      z=1.0,
      local_entropy=dict(text=1.0),
      global_entropy=dict(text=1.0, image=1.0),
    )
  )
  # global_entropy's threshold, as the least number of experts a modality should use
  c.min_experts = ConfigDict(dict(text=3.0, image=5.0))
  # Modality -> floors below which training warns that a router collapses, of the share
  # of its tokens that experts serve and of its effective experts. Absent: no warning.
  c.warn = ConfigDict(
    dict(
      served=dict(text=0.5, image=0.5),
      effective_experts=dict(text=1.5, image=2.5),
    )
  )
  return c


def get_config(arg: str = "") -> ConfigDict:
  """Returns the defaults: a small dense CLIP with nothing said about its data."""
  del arg
  c = ConfigDict()
  c.name = "base"
  c.seed = 0
  c.total_steps = 1000
  c.batch_size = 256  # global, over all hosts and devices

  c.model = ConfigDict()
  c.model.embed_dim = 256  # of the shared space
  c.model.shared_trunk = False  # one for all modalities (LIMoE) or one each (CLIP)
  c.model.trunk = trunk()
  c.model.moe = moe()
  c.model.modalities = ConfigDict(
    dict(
      image=modality(size=(64, 64, 3), patch=(8, 8)),
      text=modality(stem="tokens", vocab=4096, length=32),
    )
  )
  c.model.scan = False  # scan over layers: compiles faster, runs slower on CPU
  # What the backward pass recomputes: "none" | "activations" | "dots" | "full".
  c.model.remat = "none"
  c.model.dtype = "float32"  # of matmuls and activations; "bfloat16" on accelerators

  c.objective = ConfigDict()
  c.objective.name = "contrastive"  # a file of model/objectives/
  # Its options. `losses`: (a file of model/losses/, weight, options)
  c.objective.options = ConfigDict(
    dict(losses=(("infonce", 1.0, ConfigDict(dict(pairs=IMAGE_TEXT))),)),
    convert_dict=False,
  )

  c.optimizer = ConfigDict()
  c.optimizer.name = "adamw"  # "adamw" | "adafactor" | "lion"
  c.optimizer.lr = 1e-3  # peak
  c.optimizer.schedule = "cosine"  # "cosine" | "rsqrt" | "constant", after warm-up
  c.optimizer.warmup = 100  # steps; linear from 0
  c.optimizer.cooldown = 0  # rsqrt, constant: last steps, linear to 0
  c.optimizer.timescale = 10_000  # rsqrt: steps
  c.optimizer.weight_decay = 0.1  # on matrices only, times the learning rate
  c.optimizer.b1 = 0.9
  c.optimizer.b2 = 0.98
  c.optimizer.clip = 1.0  # global gradient norm; 0 is off
  c.optimizer.moment_dtype = "float32"  # of the first moment
  c.optimizer.frozen = ()  # regexes on parameter paths that are not trained (LiT)
  c.optimizer.lr_scale = ()  # (regex, factor), first match wins
  c.ema = 0.0  # decay of the parameters' moving average; 0 is off
  c.ema_warmup = True  # a lower decay at first: at most (1 + n) / (10 + n) at step n
  c.microbatches = 1  # chunks of the batch encoded one after another; same negatives

  c.mesh = ConfigDict(dict(data=-1, fsdp=1, expert=1, tensor=1))  # -1: what is left
  c.sharding = ConfigDict()
  c.sharding.rules = ()  # (regex, axes) put before those of sharding/rules.py

  c.data = ConfigDict()
  c.data.source = ""  # a file of input_pipeline/sources/
  c.data.options = ConfigDict()  # its options
  c.data.split = "train"
  c.data.transforms = ()  # (a file of input_pipeline/transforms/, options), in order
  c.data.eval_transforms = ()
  c.data.repeat = 1  # training rows in a row of one example, each transformed anew
  # Several sources: (name, weight, changes of config.data) each, see docs/mixtures.md.
  # A weight is a number, or ((example, weight), ...), shares being linear in between.
  c.data.mixture = ()
  c.data.single_source = False  # whether each batch is of one source of the mixture
  # Batches of texts of like length: lengths below config.model.modalities.text.length.
  c.data.buckets = ()
  # Batches of images of like shape: (height, width) beside that of the model.
  c.data.image_sizes = ()
  c.data.lengths = "{workdir}/lengths"  # folder of what the two go by, measured once
  # A path, of a kind in input_pipeline/tokenizer.py; "{workdir}" is replaced.
  c.data.tokenizer = ""
  c.data.threads = 2  # that decode and transform
  c.data.workers = 0  # processes; 0: threads only
  c.data.prefetch = 8  # batches ready in memory
  c.data.max_dropped = 0.05  # share of dropped examples that stops the run

  c.hosts = ConfigDict()  # several processes: see docs/launch.md
  c.hosts.join_s = 300.0  # seconds that all of them may take to meet
  c.hosts.lost_s = 60.0  # seconds of silence after which one is lost and the rest end
  c.hosts.stopped_status = 0  # exit status after SIGTERM; 75 has tools/restart.sh go on
  c.compilation_cache = "{workdir}/compilation_cache"  # of programs; "": none

  c.evaluators = ()  # (a file of evaluators/, every n steps, options)
  c.log_every = 10  # steps
  c.wandb = ""  # a Weights & Biases project that metrics go to as well; "": none
  c.checkpoint = ConfigDict()
  c.checkpoint.every = 500  # steps
  c.checkpoint.keep = 2  # latest; with 1, there is none to go back to
  c.checkpoint.keep_every = 0  # steps; these are never deleted; a multiple of `every`
  c.checkpoint.best = ""  # metric that picks the best one, e.g. "retrieval/i2t_r10"
  c.checkpoint.mode = "max"  # "max" | "min"
  c.checkpoint.digests = True  # of files, checked on resume; each reads a step once
  c.checkpoint.retries = 2  # saves in a row that may fail; one more stops the run
  c.init_from = ""  # a checkpoint's directory to start from; matched by path and shape
  c.init_only = ()  # regexes on parameter paths to take from it; (): all that match
  c.frozen_from = ""  # the same, for a frozen teacher alone; "": the first parameters
  return c
