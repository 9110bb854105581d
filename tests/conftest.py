"""What all tests share."""


def pytest_collection_modifyitems(items):
    "The tree's state first, since a stale export makes later failures misleading; notebooks next."
    order = {'test_repo.py': 0, 'test_notebooks.py': 1}
    items.sort(key=lambda item: order.get(item.path.name, 2))
