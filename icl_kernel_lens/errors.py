"""The errors a user can meet, and one table of what each code means: symptom, cause and fix.

A message says what must hold, what was found and where, and what to do; its text ends with the code, which does not
change when a message is worded anew, and is what to search for.
"""

from __future__ import annotations

from typing import NamedTuple


class LensError(Exception):
    """Base of every error this package raises on purpose; `code` is its entry in `CODES`."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message, code)
        self.message, self.code = message, code

    def __str__(self) -> str:
        return f"{self.message} [{self.code}]"


class TaskError(LensError, ValueError):
    """A task is unknown, or its examples, classes or label words do not fit together."""


class PromptError(LensError, ValueError):
    """Prompts cannot be built or do not fit the model: positions, label tokens, length."""


class ModelError(LensError, RuntimeError):
    """A model cannot be read: no attention hooks, rows that do not sum to one, wrong output."""


class LoadError(LensError, ValueError):
    """A model or a saved file cannot be loaded: absent, of the wrong kind, version or shape."""


class EvidenceMissing(LensError, KeyError):
    """An `Evidence` was read without what is asked of it now."""


class ResultError(LensError, ValueError):
    """A result is asked for something it cannot give, or a folder holds something else."""


class RunError(LensError, RuntimeError):
    """A run cannot go on: memory, a checkpoint of another run, a process that was lost."""


class ArgumentError(TaskError, PromptError, ResultError):
    """An argument is of another type than its function declares; it is caught with the errors of tasks, prompts, results."""


def without_code(error: BaseException) -> str:
    """An error's text without its code, to stand within another text."""
    return error.message if isinstance(error, LensError) else str(error)


class Entry(NamedTuple):
    """What a user sees, why it happens most often, and what to do."""

    symptom: str
    cause: str
    fix: str


CODES: dict[str, Entry] = {
    # What is asked for
    "unknown-choice": Entry(
        "A word is none of those allowed.",
        "It is misspelt, or an option of another function.",
        "Take one of the words that the message lists.",
    ),
    "number-range": Entry(
        "A number lies outside its range.",
        "A percentage for a share, or a count that is too small or too large.",
        "Give a number in the range that the message names.",
    ),
    "wrong-type": Entry(
        "An argument is of another type.",
        "A model for its prompts, a tensor for its evidence, a single number for a list.",
        "Give what the message shows.",
    ),
    "options-clash": Entry(
        "Two options exclude each other.",
        "One leaves no room for the other.",
        "Leave out the one that the message names.",
    ),
    "head-name": Entry(
        "A head is not named as heads are.",
        "Another spelling, or a single head where a list is asked for.",
        'Write "L3H7" or (3, 7), both counted from 0; for several, a list of these.',
    ),
    "head-outside": Entry(
        "A head is not one of the model's.",
        "Layers and heads count from 0.",
        "Choose among the layers and heads that the message counts.",
    ),
    "head-repeated": Entry("A head is named twice.", "Two lists were joined.", "Name each head once."),
    "no-heads": Entry(
        "There is no head to work on.",
        "A ranking confirmed none, or the list is empty.",
        "Give heads of your own, or rank them on other prompts.",
    ),
    "package-missing": Entry(
        "An optional package is not installed.",
        "It is needed for this function alone.",
        "Install the extra that the message names.",
    ),
    # Tasks
    "task-unknown": Entry(
        "No task has this name.",
        "It is misspelt, or the file is elsewhere.",
        "Take a known name, or give the path of a file.",
    ),
    "task-file": Entry(
        "A task's file cannot be read.",
        "It is absent, damaged, or of another format than its ending says.",
        "Check the path and the row that the message names.",
    ),
    "task-field": Entry(
        "A row lacks a field, or has more texts than the template shows.",
        "The field has another name in this file, or the template is of another task.",
        "Name the fields with text_fields and label_field.",
    ),
    "task-label": Entry(
        "A label is no class of the task.",
        "Numbers that do not count from 0, or a class that one of the files lacks.",
        "Name the classes, or mend the row that the message names.",
    ),
    "task-template": Entry(
        "A template cannot be used.",
        "A placeholder is missing or unknown, or the label stands before the text.",
        "Write {text} first, then {label}, and a separator.",
    ),
    "chat-template": Entry(
        "A tokenizer's chat template cannot write the prompts.",
        "It has none, knows no system prompt, or writes a turn otherwise when others follow.",
        "Show the demonstrations in one turn, leave system= out, or write a template of your own.",
    ),
    "task-pool": Entry(
        "A pool has too few examples.",
        "More demonstrations or test inputs are asked for than it holds, or a class has none.",
        "Ask for fewer, or bring more examples.",
    ),
    "task-fixed": Entry(
        "The template, words or demonstrations of this task cannot be set.",
        "The task writes its own for every document.",
        "Leave the option out, or make a task with Task.from_records.",
    ),
    "label-words": Entry(
        "Label words and classes do not correspond.",
        "There must be one word for each class, all different.",
        "Give as many different words as there are classes.",
    ),
    "hub": Entry(
        "A data set cannot be loaded from the Hugging Face Hub.",
        "No network, or another name.",
        "Load a local copy by its path.",
    ),
    # Prompts
    "too-few-demonstrations": Entry(
        "The prompts have no demonstrations, or too few.",
        "They were drawn with a small demos=.",
        "Draw prompts with more demonstrations.",
    ),
    "too-few-labels": Entry(
        "There are fewer than two labels.",
        "A vote chooses between labels.",
        "Use a task with two classes or more.",
    ),
    "too-few-sets": Entry(
        "There are too few demonstration sets.",
        "Prompts that share their demonstrations are not independent.",
        "Draw prompts with more sets=, or without sets=.",
    ),
    "no-shared-sets": Entry(
        "Prompts share no demonstrations, and cannot be made to.",
        "Each has label words of its own, which the test inputs of others do not go with.",
        "Draw prompts with sets=32, so that several test inputs share each set.",
    ),
    "no-truth": Entry(
        "The prompts have no true labels.",
        "They were made from token ids without test_labels.",
        'Give test_labels, or compare against="model".',
    ),
    "whole-labels": Entry(
        "The prompts are scored on whole labels.",
        "The computation is about the logits at one position.",
        'Choose label words that differ in their first token, with score_on="first_token".',
    ),
    "label-collision": Entry(
        "Two label words begin with the same token.",
        "The tokenizer splits them after it.",
        'Choose other words, or score_on="sequence".',
    ),
    "label-prefix": Entry(
        "A label word begins another.",
        "The shorter one is always at least as probable.",
        "Choose other words.",
    ),
    "label-tokens": Entry(
        "A label word has no tokens of its own, or begins with a bare space.",
        "The tokenizer merges it with the text around it, or does not know it.",
        "Change the word or the template as the message says.",
    ),
    "label-lengths": Entry(
        "Label words have different numbers of tokens.",
        "Exchanging them would move every later position.",
        "Choose words with equally many tokens.",
    ),
    "label-range": Entry(
        "A label is none of the classes.",
        "Labels count from 0.",
        "Check the labels against the number of classes.",
    ),
    "tokenizer": Entry(
        "The tokenizer is missing, or cannot do what is needed.",
        "The model has none, it is a slow one, or it lacks a special token.",
        "Use a fast tokenizer, or pass token ids to PromptSet.from_tokens.",
    ),
    "empty-text": Entry(
        "A text is empty, or has no token.", "A row has no content, or white space alone.", "Drop the row."
    ),
    "text-unicode": Entry(
        "A text is no Unicode text.",
        "It holds half of a surrogate pair, from a file that was read in another encoding.",
        "Mend the text as the message says, or drop the row.",
    ),
    "position": Entry(
        "A position lies outside its prompt, out of order, or not on a label.",
        "Positions of another prompt, or shifted by one.",
        "Count from 0 within the prompt's own tokens.",
    ),
    "offset": Entry(
        "An offset from the labels cannot be used.",
        "It leads out of the prompt, is named twice, or is no whole number.",
        "Choose other offsets.",
    ),
    "prompt-shapes": Entry(
        "The parts of a set of prompts have different sizes.",
        "An axis is missing, or one part is of other prompts.",
        "Give one row for each prompt in every part.",
    ),
    "vocabulary": Entry(
        "A token id is not in the model's vocabulary, or stands for another token there.",
        "The prompts were made for another model.",
        "Make the prompts with this model, or pass prompts.as_ids() where the ids are meant.",
    ),
    "too-long": Entry(
        "A prompt does not fit into the model's context.",
        "Too many or too long demonstrations.",
        "Take as many as the message says would fit.",
    ),
    "only-text": Entry(
        "These prompts cannot be written anew.",
        "They were made from token ids or loaded from a file, so their texts are not known.",
        "Draw them again with task.prompts, or give token ids.",
    ),
    "prompts-differ": Entry(
        "Two sets of prompts do not correspond.",
        "One was not made from the other, or is another model's.",
        "Make the second from the first with corrupt, or draw prompts of this model.",
    ),
    "unequal-lengths": Entry(
        "Inputs have different numbers of tokens.",
        "Exchanging them would move every later position.",
        "Draw the prompts with match_lengths=True.",
    ),
    "nothing-to-change": Entry(
        "A corruption would leave labels as they are.",
        "One class has most of the demonstrations.",
        "Draw balanced prompts, or choose another corruption.",
    ),
    # Models
    "model-kind": Entry(
        "This object is no model that can be read.",
        "It has no attention hooks.",
        "Load it with load_model, or wrap it with bridge_from_hf.",
    ),
    "model-folder": Entry(
        "A model cannot be loaded from this folder or file.",
        "A misspelt path, a missing file, or an incomplete download.",
        "Give a whole folder in Hugging Face format, or a whole .gguf file.",
    ),
    "model-hub": Entry(
        "A model of the Hugging Face Hub cannot be had.",
        "A misspelt name, no network, or a model that may be read only after logging in.",
        "Check the name, log in with hf auth login, or give the path of a local copy.",
    ),
    "model-pickle": Entry(
        "A file of weights holds a pickled object that is no tensor.",
        "It was written by another program, or to run code on your machine; nothing in it was run.",
        "Get the model as safetensors, from someone you trust.",
    ),
    "model-adapter": Entry(
        "An adapter cannot be merged into its base model.",
        "Its base model is not named or is another one, its file is damaged, or it adds tokens and no weights.",
        "Check adapter_config.json as the message says, or merge it with PEFT and load the result.",
    ),
    "model-backend": Entry(
        "This model class is not possible here.",
        "The installed TransformerLens or the architecture does not have it.",
        "Take the other one, as the message says.",
    ),
    "device": Entry(
        "The device cannot be used.",
        "It is absent, or the model cannot be spread over several.",
        "Choose another device.",
    ),
    "device-result": Entry(
        "The device computes something else than the CPU.",
        "A fault of the device's backend.",
        'Load the model with device="cpu".',
    ),
    "fused-attention": Entry(
        "The model never writes out its attention weights.",
        "Attention is computed in one fused step.",
        'Load it with attn_implementation="eager".',
    ),
    "hook-missing": Entry(
        "A hook point or weight does not exist.",
        "The installed TransformerLens does not open up this architecture.",
        "Try another version of TransformerLens, or another part of the layer.",
    ),
    "hook-firing": Entry(
        "A hook point did not fire exactly once in a forward pass.",
        "Fused attention, or a block that is not run or is run repeatedly.",
        'Load the model with attn_implementation="eager".',
    ),
    "hook-shape": Entry(
        "An activation or weight has another shape.",
        "Attention that stores its values otherwise.",
        "Choose another model: this architecture cannot be read.",
    ),
    "not-causal": Entry(
        "A position attends to later ones.",
        "An encoder or another bidirectional model.",
        "Choose a causal language model.",
    ),
    "not-attention": Entry(
        "The hooks do not show what the layer computes.",
        "A hook that edits, fused attention, or an attention sink that is not declared.",
        "Remove the hook, or load the model again as the message says.",
    ),
    "no-attention": Entry(
        "Layers have no attention.",
        "A state-space, recurrent or hybrid model.",
        "Choose a model with attention in every layer.",
    ),
    "other-logits": Entry(
        "A model gives other logits than in Hugging Face.",
        "The installed TransformerLens converts the architecture wrongly: a scale or the causal mask is lost.",
        "Try another version of TransformerLens, or another model.",
    ),
    "not-finite": Entry(
        "Activations or logits are infinite or undefined.",
        "Half precision overflows, the weights are damaged, or a hook makes them so.",
        "Load the model in bfloat16 or float32, get the weights anew, or remove the hook, as the message says.",
    ),
    "not-taken-over": Entry(
        "A layer's attention cannot be computed outside of the model.",
        "It does something to its scores that is not among the known rules.",
        "Use a function that only reads, or another model; the message names the reason.",
    ),
    "not-linear": Entry(
        "A model's parts do not add up to its logits.",
        "A norm that is not linear at a fixed scale, or something between norm and unembedding.",
        "Choose another model: direct logit attribution is not defined for this one.",
    ),
    "gradient": Entry(
        "A gradient is missing or wrong.",
        "Half precision, quantised or inference-mode weights, or a hook that cuts it.",
        "Load the model in float32 or bfloat16, without hooks.",
    ),
    "change-lost": Entry(
        "A change of an activation does not do what it should.",
        "A hook that edits, or a layer that did not run.",
        "Remove hooks of your own, or load the model again.",
    ),
    "kernel-weights": Entry(
        "Kernel weights cannot be put in place of attention.",
        "Another shape or type, negative or undefined numbers, or a function that failed.",
        "Give finite weights of the shape that the message names.",
    ),
    # Runs, files and folders
    "memory": Entry(
        "Not even one prompt fits into memory.",
        "The prompts are too long for the device.",
        "Use fewer demonstrations, half precision or a larger device.",
    ),
    "checkpoint-other": Entry(
        "A checkpoint is another run's.",
        "Another model, other prompts or other settings.",
        "Give the same arguments, or another folder.",
    ),
    "checkpoint-damaged": Entry(
        "A checkpoint's file is damaged.",
        "It was cut short, changed, or written by two runs at once.",
        "Delete what the message names and run again.",
    ),
    "checkpoint-hooks": Entry(
        "A checkpoint cannot tell what was computed.",
        "Hooks and functions have no name that can be stored.",
        "Run without a checkpoint, or without hooks and functions of your own.",
    ),
    "processes-differ": Entry(
        "Processes were given different work.",
        "A seed or a file differs from process to process.",
        "Give all processes the same arguments.",
    ),
    "process-lost": Entry(
        "Another process failed, and this one was ended with it.",
        "It met an error, or was killed, perhaps for want of memory.",
        "See its output; with a checkpoint, the same command goes on.",
    ),
    "too-many-processes": Entry(
        "There are more processes than prompts.", "Each process needs a prompt.", "Start fewer processes."
    ),
    "cannot-write": Entry(
        "A file or folder cannot be written.",
        "The disk is full, or the folder read-only or another user's.",
        "Free some space, or choose another place.",
    ),
    "not-a-folder": Entry(
        "A file stands where a folder should be.", "The name is in use.", "Choose another name."
    ),
    "folder-foreign": Entry(
        "A folder holds files that are not results.",
        "It is in use for something else.",
        "Choose an empty folder.",
    ),
    "folder-other": Entry(
        "A folder holds another run's results.",
        "Another model, task or setting.",
        "Choose another folder, or pass --overwrite.",
    ),
    "folder-locked": Entry(
        "Another run is writing into the folder.",
        "It has not ended yet.",
        "Wait until it has ended, or choose another folder.",
    ),
    "folder-unfinished": Entry(
        "A folder's run has not finished.",
        "The run is at work, or was cut short.",
        "Run the same command again: it goes on.",
    ),
    "file-suffix": Entry(
        "A file name has no ending that can be written.",
        "The ending chooses the format.",
        "End the name as the message lists.",
    ),
    "file-absent": Entry(
        "There is no saved result at this path.",
        "Another path, or a folder for a file.",
        "Give the path of what was saved.",
    ),
    "file-foreign": Entry(
        "A file is not a saved result.",
        "Another program wrote it, or it was cut short.",
        "Give a file that save() wrote.",
    ),
    "file-format": Entry(
        "A file has a format that is not read here.",
        "Another version of this library wrote it.",
        "Read it with that version, or make it anew.",
    ),
    "file-damaged": Entry(
        "A file is not what was written.",
        "It was changed or cut short, or it cannot be opened.",
        "Make it anew.",
    ),
    "file-kind": Entry(
        "A file or folder holds another kind of result.",
        "The load of another class was called.",
        "Load it with icl_kernel_lens.load, which finds the class.",
    ),
    # Results
    "not-whole": Entry(
        "The parts of an object do not fit together.",
        "A tensor of another shape or type, or a value out of range.",
        "Make it with the function that computes it.",
    ),
    "influence-of-others": Entry(
        "The label influence is of another model, or of other weights under the same name.",
        "It was measured earlier, on something else.",
        "Measure it again: label_influence(model, prompts).",
    ),
    "evidence-of-others": Entry(
        "The evidence is of other prompts or of another model.",
        "It was read earlier, from something else.",
        "Read it again, or leave evidence= out.",
    ),
    "accuracy-of-others": Entry(
        "The accuracy is of other prompts or of another model.",
        "It was measured earlier, on something else.",
        "Measure it again, or leave accuracy= out.",
    ),
    "evidence-missing": Entry(
        "Evidence or a cache lacks what is asked of it.",
        "A pooling was not kept, or a names_filter left a hook point out.",
        "Read or cache again as the message says.",
    ),
    "not-kept": Entry(
        "A prompt's token strings and rows were not kept.",
        "They are kept for the first prompts alone.",
        "Choose one of the first prompts.",
    ),
    "not-in-result": Entry(
        "A result does not hold what is asked for.",
        "It was computed without it, or by another function.",
        "Compute it as the message says.",
    ),
    "nothing-scored": Entry(
        "Too little could be scored or measured.",
        "The reasons are kept beside the values.",
        "Read the reasons in the message.",
    ),
    "nothing-to-divide": Entry(
        "A share of nothing is asked for.",
        "The interval of the difference that is divided by includes 0.",
        "Use more prompts or a stronger corruption, or the mean effect.",
    ),
    "not-comparable": Entry(
        "Results cannot be compared.",
        "There are fewer than two, or their models differ in shape.",
        "Give at least two, of models of one shape.",
    ),
    # Theory and planted models
    "theory-numbers": Entry(
        "Numbers are no probabilities, or tokens no symbols.",
        "Rows that do not sum to 1, a logarithm, float32, or a delimiter among the symbols.",
        "Give probabilities in float64, and symbols counted from 0.",
    ),
    "theory-world": Entry(
        "The parts of a world do not fit together.",
        "Other numbers of states, tasks or symbols.",
        "Give parts of one world, as the message says.",
    ),
    "theory-prompts": Entry(
        "Prompts do not have the layout of this world.",
        "Inputs of another length, or no delimiter after a demonstration.",
        "Sample the prompts from this world.",
    ),
    "theory-kernel": Entry(
        "This kernel cannot be computed here.",
        "A missing task, another world's kernel, or a moment without inverse.",
        "Choose another variant as the message says.",
    ),
    "theory-too-many": Entry(
        "There are too many inputs to enumerate.",
        "Their number grows as symbols to the power of the length.",
        "Sample them, or shorten input_length.",
    ),
    "planted-plan": Entry(
        "Such a model cannot be planted.",
        "Its heads do not fit together, or not into the model.",
        "Change what the message names.",
    ),
}
"""By code. A code keeps its meaning, and one that is no longer raised is not used again."""
