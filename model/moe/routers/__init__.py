"""The routers, one file each: `config.model.moe.router` is a file name of this folder.

Each defines `class Router(router.Gate)` (see there), which decides and moves nothing.
"""
