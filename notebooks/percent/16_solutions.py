# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Solutions to 16 · Localization
#
# **1.** The box lies inside the image, so they share 45% and cover 100% together: an IoU of 0.45, enough for 0.3 alone.

# %%
from course import exercises

exercises.whole_image_levels([0.3])

# %% [markdown]
# **2.** All the attention lies on the object: 100%. The box around it is a quarter of the true one and lies inside it: an IoU of about 0.25,
# right at no level.

# %%
exercises.part_of_an_object(100.0, 0.25)
