"""Language models: tokenizers, batches, model, loss, evaluation, sampling."""

from lstm_jax.language.batching import Batches as Batches
from lstm_jax.language.batching import make_batches as make_batches
from lstm_jax.language.drawing import DrawingRules as DrawingRules
from lstm_jax.language.dynamic_eval import Divergence as Divergence
from lstm_jax.language.dynamic_eval import (
  DynamicEvalConfig as DynamicEvalConfig,
)
from lstm_jax.language.dynamic_eval import (
  dynamic_log_probs as dynamic_log_probs,
)
from lstm_jax.language.dynamic_eval import dynamic_nats as dynamic_nats
from lstm_jax.language.dynamic_eval import gradient_scale as gradient_scale
from lstm_jax.language.epochs import BatchingConfig as BatchingConfig
from lstm_jax.language.evaluate import batch_log_probs as batch_log_probs
from lstm_jax.language.evaluate import cold_nats as cold_nats
from lstm_jax.language.evaluate import nats_per_character as nats_per_character
from lstm_jax.language.evaluate import stateful_log_probs as stateful_log_probs
from lstm_jax.language.evaluate import stateful_loss as stateful_loss
from lstm_jax.language.evaluate import stateful_nats as stateful_nats
from lstm_jax.language.loss import cross_entropy as cross_entropy
from lstm_jax.language.model import LanguageModel as LanguageModel
from lstm_jax.language.model import language_model as language_model
from lstm_jax.language.params import LanguageParams as LanguageParams
from lstm_jax.language.params import ModelConfig as ModelConfig
from lstm_jax.language.regularizers import Regularizers as Regularizers
from lstm_jax.language.sampling import sample as sample
from lstm_jax.language.search import beam_search as beam_search
from lstm_jax.language.search import continuation_nats as continuation_nats
from lstm_jax.language.search import sample_best as sample_best
from lstm_jax.language.text import middle_slice as middle_slice
from lstm_jax.language.text import read_text as read_text
from lstm_jax.language.text import split as split
from lstm_jax.language.text_stream import TextStream as TextStream
from lstm_jax.language.tokenizer import CharTokenizer as CharTokenizer
from lstm_jax.language.tokenizer import Tokenizer as Tokenizer
from lstm_jax.language.word_tokenizer import WordTokenizer as WordTokenizer
from lstm_jax.language.word_tokenizer import normalize as normalize
