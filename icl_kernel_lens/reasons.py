"""Why a number is NaN or was not measured: one code and one message for every reason in the package.

A code is stored and compared; the message is printed. Results count them: `Mapping[Reason, int]`.
"""

from __future__ import annotations

from enum import Enum


class Reason(str, Enum):
    """A reason: its code, and the message that it is printed as."""

    message: str

    def __new__(cls, code: str, message: str) -> Reason:
        made = str.__new__(cls, code)
        made._value_, made.message = code, message
        return made

    # scores and read-outs, per prompt and head
    NO_ATTENTION_LAYER = "no_attention_layer", "the layer has no attention (Evidence.missing says more)"
    NO_TOKEN = "no_token", "a demonstration without a token that counts"
    NO_ATTENTION = "no_attention", "no attention on the demonstrations"
    SIMILARITIES_ALIKE = "similarities_alike", "similarities all alike"
    ATTENTION_ALIKE = "attention_alike", "attention all alike"
    SET_ALIKE = "set_alike", "weights do not vary with the test input, demonstrations fixed"
    # interventions, per prompt and cell; the last four are of a control
    NOTHING_LEFT = "nothing_left", "nothing is left of a row"
    NO_PAIR = "no_pair", "no pair of demonstrations with and without the reference label"
    RANDOM_KEYS = "random_keys", "random_keys: too few other keys to cut as many"
    EQUAL_MASS = "equal_mass", "equal_mass: too little attention on other keys to cut as much"
    UNIFORM = "uniform", "uniform: the row is not a number"
    SHUFFLED_KERNEL = "shuffled_kernel", "shuffled_kernel: the row is not a number"
    # shares of the label part
    NO_LABEL_PART = (
        "no_label_part",
        "the interval of the label part reaches 0, so that there is nothing to take shares of",
    )
    NO_LABEL_INTERVAL = (
        "no_label_interval",
        "the label part has no interval: there are too few demonstration sets",
    )
    # the kernel part of label influence
    NO_SHARED_SETS = (
        "no_shared_sets",
        "no two prompts share their demonstrations, so that the test input never varies alone",
    )
    ONE_ORDER = "one_order", "the demonstrations were shown in one order alone"
    # conditions of the task accuracy
    NO_TRUTH = "no_truth", "the prompts have no true labels"
    NOT_RUN = "not_run", "the model was not run for it; in_context_accuracy does"
    NOTHING_PERMUTED = (
        "nothing_permuted",
        "permuting changes no label: too few demonstrations, or all of one class",
    )
    NOT_FROM_TEXT = "not_from_text", "the prompts were made from token ids or loaded"
    # why a head is of no clearer class
    NOT_SINGLED_OUT = "not_singled_out", "the choosing half gave no reason to look"
    NOT_AMONG_MOST = (
        "not_among_most",
        "more heads were singled out than are measured, and others fitted or cost more",
    )
    NO_CLASS_FITS = "no_class_fits", "all was measured, and no class has these answers"
    FIT_UNSURE = "fit_unsure", "more prompts must say whether its weights follow the model's own kernel"
    SWAP_UNSURE = "swap_unsure", "more prompts must say whether its weights go with swapped inputs"
    SWAP_UNMEASURED = (
        "swap_unmeasured",
        "no inputs of two classes could be swapped, or its weights do not differ: whether they go with inputs is not known",
    )
    READ_ELSEWHERE = (
        "read_elsewhere",
        "labels enter elsewhere than at its label edges, too, so that an echo of them is not told from a kernel",
    )
    LABELS_ONCE = (
        "labels_once",
        "no prompt shows two demonstrations of one label, so that an echo, which weighs these alike, is not told from a kernel",
    )
    LOOKS_UNSURE = "looks_unsure", "more prompts must say whether its weights change with the test input"
    RANKS_UNSURE = (
        "ranks_unsure",
        "more prompts must say whether another test input ranks the demonstrations otherwise, or only more sharply",
    )
    TRANSPORT_UNSURE = "transport_unsure", "more prompts must say whether its values carry labels"
    MORE_THAN_ALL = (
        "more_than_all",
        "it carries more than all of the label part, and no head that was measured undoes it: something else does",
    )
    KERNEL_SHARE_UNSURE = (
        "kernel_share_unsure",
        "more prompts must say whether what it carries is part of the kernel",
    )
    OWN_UNSURE = (
        "own_unsure",
        "more prompts must say whether its label edges bring their own demonstrations' labels",
    )
    GIVES_UNSURE = (
        "gives_unsure",
        "more prompts must say whether a new label gains what the old one loses by it",
    )
    COMPANY_UNSURE = (
        "company_unsure",
        "more prompts must say whether what it brings of a demonstration hangs on which others there are",
    )
    CUTS_UNSURE = "cuts_unsure", "its cuts disagree, or more prompts must say what they cost"
    ECHO_UNSURE = "echo_unsure", "more prompts must say whether it decides by what heads below it wrote"
    INPUTS_UNSURE = "inputs_unsure", "more prompts must say whether its weights follow the inputs"
    # kernel regression in the theory, per prompt and number of demonstrations
    NO_DEMOS = "no_demos", "no demonstrations"
    OUTSIDE = "outside", "an input is impossible or outside the design"
    NO_WEIGHT = "no_weight", "no demonstration has kernel weight"
    NEGATIVE = "negative", "denominator negative"
    CANCELLED = "cancelled", "denominator cancelled to below the guard"

    def __str__(self) -> str:
        return self.message
