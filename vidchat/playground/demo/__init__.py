"""The whole path on rendered people: data, three stages, answers to unseen initiators, measurements, a page."""
