"""What the R-CNNs' proposals and detections are compared with."""

import torch


def rows(instances):
    """Each proposal with its class and object, for comparing as multisets."""
    fields = [instances.proposal_boxes.tensor, instances.gt_classes[:, None].float()]
    if instances.has("gt_boxes"):
        fields.append(instances.gt_boxes.tensor)
    return sorted(map(tuple, torch.cat(fields, dim=1).tolist()))


def spy(monkeypatch, module, name):
    """Calls of a method: [(args, result), ...]."""
    calls, method = [], getattr(module, name)

    def wrapper(*args, **kwargs):
        result = method(*args, **kwargs)
        calls.append((args, result))
        return result

    monkeypatch.setattr(module, name, wrapper)
    return calls


def assert_same_detections(ours, stock, inputs):
    stock.load_state_dict(ours.state_dict())
    with torch.no_grad():
        for a, b in zip(ours.eval()(inputs), stock.eval()(inputs)):
            a, b = a["instances"], b["instances"]
            assert a.image_size == b.image_size and len(a) == len(b) > 0
            assert a.get_fields().keys() == b.get_fields().keys()
            for name, value in a.get_fields().items():
                other = b.get(name)
                value, other = (getattr(x, "tensor", x) for x in (value, other))
                assert torch.equal(value, other), name
