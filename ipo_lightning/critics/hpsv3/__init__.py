"""HPSv3, a scorer of images: the critic, and the rubric that its weights were tuned with.

``rubric.txt`` is MizzenAI/HPSv3's, to the byte (MIT, see LICENSE in this folder).
"""
