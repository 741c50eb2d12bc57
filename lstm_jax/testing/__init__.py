"""Check gradients against autodiff and finite differences; plant errors."""

from lstm_jax.testing._gradcheck import gradcheck as gradcheck
from lstm_jax.testing.mutation import plant as plant
from lstm_jax.testing.mutation import terms as terms
from lstm_jax.testing.report import Error as Error
from lstm_jax.testing.report import Report as Report
from lstm_jax.testing.report import TensorReport as TensorReport
