__version__ = "0.1.0"

# The public names by what they are about, roughly a lesson each; taken from their modules when first asked for:
# `import ltpa` stays instant, and `ltpa --help` needs no torch. A type checker reads the imports below.
from typing import TYPE_CHECKING

GROUPS = {
    'ground': {'names': 'LtpaError Recipe get_recipe list_models switches', 'core': 'pick_device seed_everything'},
    'attention': {'attention': 'Attention attention_pool dp_scores entropy normalize pc_scores'},
    'data': {'data': 'ClutteredFashion ImageSet Loader', 'inputs': 'read_image', 'folders': 'load_arrays load_folder load_pairs',
             'published': 'load_object_discovery load_published open_data', 'downloads': 'download'},
    'models': {'models': 'create_model list_pretrained load_pretrained load_weights save_weights'},
    'training': {'training': 'Callback Learner evaluate predict', 'checkpoints': 'Checkpoint load_checkpoint',
                 'recipes': 'plan recipe_table', 'runs': 'evaluate_weights run_training'},
    'maps': {'maps': 'combine effective_cells explain inspect_image overlay show_attention upsample', 'explorer': 'Explorer'},
    'saliency': {'saliency': 'captum_suite grad_cam gradient integrated_gradients occlusion smoothgrad'},
    'faithfulness': {'metrics': 'energy_in_mask iou max_box_acc_v2 otsu pointing_game pxap',
                     'faithfulness': 'evaluate_explainers interventions perturbation_curves randomization'},
    'experiments': {'transfer': 'features finetune probe unseen', 'adversarial': 'fgsm noise pgd',
                    'query': 'query_maps two_objects', 'studies': 'Study run_study summarize'},
}
_HOME = {name: module for modules in GROUPS.values() for module, names in modules.items() for name in names.split()}
GROUPS = {group: [name for names in modules.values() for name in names.split()] for group, modules in GROUPS.items()}
__all__ = sorted(_HOME)


def __getattr__(name):
    from importlib import import_module
    if name in _HOME: return getattr(import_module(f'.{_HOME[name]}', __name__), name)
    if name.startswith('__'): raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return import_module('.moved', __name__).moved(__name__)(name)


def __dir__(): return sorted([*globals(), *__all__])
