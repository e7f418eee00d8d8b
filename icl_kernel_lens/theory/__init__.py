"""The theory, computed: Bayesian prediction against kernel regression on hidden Markov worlds.

Han, Wang, Zhao, Ji, "Understanding Emergent In-Context Learning from a Kernel Regression Perspective" (TMLR
2025), section 2, in float64 and without a language model. One file an idea:

    hmm            hidden Markov models                 mixture      tasks merged into one, prompts, delimiter
    presets        worlds with known parameters         ginc         the generator of Xie et al. (2022)
    bayes          P(Y | prompt), posterior over tasks  operators    T_x
    concentration  how the posterior finds the task     kernel       K, as features
    regression     kernel regression                    variants     other operators, moments and readouts
    theorem        Theorem 1 measured                   study        all of that on one world
    experiments    what the paper draws from it         experiment   what each of them leaves
"""

from icl_kernel_lens.theory.bayes import BayesPrediction, bayesian_prediction, task_prediction
from icl_kernel_lens.theory.checks import TheoryError
from icl_kernel_lens.theory.concentration import (
    Concentration,
    TaskDivergences,
    posterior_concentration,
    task_divergences,
)
from icl_kernel_lens.theory.experiment import Experiment
from icl_kernel_lens.theory.experiments.attention_kernels import softmax_kernels
from icl_kernel_lens.theory.experiments.labels import label_noise, output_format
from icl_kernel_lens.theory.experiments.other_worlds import worlds_of_the_paper
from icl_kernel_lens.theory.experiments.representative_demos import representative
from icl_kernel_lens.theory.experiments.similar_demos import retrieve_similar
from icl_kernel_lens.theory.ginc import Ginc, draw_ginc
from icl_kernel_lens.theory.hmm import HMM
from icl_kernel_lens.theory.kernel import VARIANTS, OperatorKernel, Variant, fit_kernel, operator_features
from icl_kernel_lens.theory.mixture import Prompts, TaskMixture, WorldInfo
from icl_kernel_lens.theory.operators import Inputs, enumerate_inputs
from icl_kernel_lens.theory.presets import PRESETS, han2025, preset, random_world
from icl_kernel_lens.theory.regression import (
    PopulationRegression,
    Regression,
    kernel_regression,
    population_regression,
)
from icl_kernel_lens.theory.study import Study, run_study
from icl_kernel_lens.theory.theorem import (
    LETTER,
    Rate,
    TheoremResult,
    TheoremSettings,
    TheoremTerms,
    measure_theorem,
    theorem_terms,
)
from icl_kernel_lens.theory.variants import VariantTable, compare_variants

__all__ = [
    "HMM",
    "LETTER",
    "PRESETS",
    "VARIANTS",
    "BayesPrediction",
    "Concentration",
    "Experiment",
    "Ginc",
    "Inputs",
    "OperatorKernel",
    "PopulationRegression",
    "Prompts",
    "Rate",
    "Regression",
    "Study",
    "TaskDivergences",
    "TaskMixture",
    "TheoremResult",
    "TheoremSettings",
    "TheoremTerms",
    "TheoryError",
    "Variant",
    "VariantTable",
    "WorldInfo",
    "bayesian_prediction",
    "compare_variants",
    "draw_ginc",
    "enumerate_inputs",
    "fit_kernel",
    "han2025",
    "kernel_regression",
    "label_noise",
    "measure_theorem",
    "operator_features",
    "output_format",
    "population_regression",
    "posterior_concentration",
    "preset",
    "random_world",
    "representative",
    "retrieve_similar",
    "run_study",
    "softmax_kernels",
    "task_divergences",
    "task_prediction",
    "theorem_terms",
    "worlds_of_the_paper",
]
