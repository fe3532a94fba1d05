"""The whole pipeline on rendered people: data, three training stages, answers to unseen initiators, scores, a page."""
