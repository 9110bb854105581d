__version__ = "0.1.0"

# The names that most programs want, taken from their modules when first asked for: `import ltpa` stays instant.
_HOME = {
    'core': 'LtpaError pick_device seed_everything',
    'attention': 'Attention entropy',
    'data': 'ClutteredFashion ImageSet Loader load_arrays load_folder open_data read_image',
    'models': 'create_model list_models list_pretrained load_pretrained load_weights save_weights',
    'training': 'Learner Recipe evaluate get_recipe predict',
    'maps': 'show_attention',
    'explorer': 'Explorer',
    'saliency': 'captum_suite grad_cam integrated_gradients',
    'faithfulness': 'score_maps',
    'transfer': 'features finetune probe unseen',
    'segmentation': 'load_object_discovery load_pairs',
    'adversarial': 'fgsm pgd',
    'query': 'ask two_objects',
}
_HOME = {name: module for module, names in _HOME.items() for name in names.split()}
__all__ = sorted(_HOME)


def __getattr__(name):
    if name not in _HOME: raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from importlib import import_module
    return getattr(import_module(f'.{_HOME[name]}', __name__), name)


def __dir__(): return sorted([*globals(), *__all__])
