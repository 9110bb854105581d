__version__ = "0.1.0"

# The public names by what they are about, roughly a lesson each; taken from their modules when first asked for:
# `import ltpa` stays instant, and `ltpa --help` needs no torch.
TYPE_CHECKING = False                     # the imports for a type checker and an editor stand below

_GROUPS = {
    'ground': {'names': 'LtpaError Recipe get_recipe list_models switches', 'core': 'pick_device seed_everything'},
    'attention': {'attention': 'Attention attention_pool dp_scores entropy normalize pc_scores'},
    'data': {'data': 'ClutteredFashion ImageSet Loader', 'photographs': 'list_photographs photograph',
             'readers': 'read_image', 'arrays': 'load_arrays',
             'folders': 'load_folder load_pairs', 'published': 'load_object_discovery open_data', 'downloads': 'download'},
    'models': {'models': 'create_model list_pretrained load_pretrained load_weights save_weights', 'backbones': 'attach'},
    'training': {'training': 'Callback Learner evaluate predict', 'checkpoints': 'Checkpoint load_checkpoint',
                 'recipes': 'plan', 'runs': 'run_training'},
    'maps': {'maps': 'effective_cells inspect_image show_attention to_original upsample', 'answers': 'predict_many',
             'gallery': 'explain explain_many', 'explorer': 'Explorer'},
    'saliency': {'saliency': 'captum_suite grad_cam integrated_gradients'},
    'faithfulness': {'metrics': 'energy_in_mask iou max_box_acc_v2 otsu pointing_game pxap',
                     'faithfulness': 'evaluate_explainers perturbation_curves randomization'},
    'sharing': {'export': 'export_network', 'hub': 'from_pretrained push_to_hub save_pretrained'},
    'experiments': {'transfer': 'features finetune probe unseen', 'adversarial': 'fgsm pgd',
                    'query': 'query_maps two_objects', 'studies': 'Study run_study'},
}
_HOME = {name: module for modules in _GROUPS.values() for module, names in modules.items() for name in names.split()}
GROUPS = {group: ' '.join(modules.values()).split() for group, modules in _GROUPS.items()}
__all__ = sorted(_HOME)

if TYPE_CHECKING:
    from .names import LtpaError, Recipe, get_recipe, list_models, switches
    from .core import pick_device, seed_everything
    from .attention import Attention, attention_pool, dp_scores, entropy, normalize, pc_scores
    from .data import ClutteredFashion, ImageSet, Loader
    from .photographs import list_photographs, photograph
    from .readers import read_image
    from .arrays import load_arrays
    from .folders import load_folder, load_pairs
    from .published import load_object_discovery, open_data
    from .downloads import download
    from .models import create_model, list_pretrained, load_pretrained, load_weights, save_weights
    from .backbones import attach
    from .training import Callback, Learner, evaluate, predict
    from .checkpoints import Checkpoint, load_checkpoint
    from .recipes import plan
    from .runs import run_training
    from .maps import effective_cells, inspect_image, show_attention, to_original, upsample
    from .answers import predict_many
    from .gallery import explain, explain_many
    from .explorer import Explorer
    from .saliency import captum_suite, grad_cam, integrated_gradients
    from .metrics import energy_in_mask, iou, max_box_acc_v2, otsu, pointing_game, pxap
    from .faithfulness import evaluate_explainers, perturbation_curves, randomization
    from .transfer import features, finetune, probe, unseen
    from .adversarial import fgsm, pgd
    from .query import query_maps, two_objects
    from .studies import Study, run_study
    from .export import export_network
    from .hub import from_pretrained, push_to_hub, save_pretrained


def __getattr__(name):
    from importlib import import_module
    if name in _HOME: return getattr(import_module(f'.{_HOME[name]}', __name__), name)
    if name.startswith('__'): raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return import_module('.moved', __name__).moved(__name__)(name)


def __dir__(): return sorted([*globals(), *__all__])
