"""The pages people look at: templates, one style, contact sheets. Takes plain values, knows nothing of the package."""
